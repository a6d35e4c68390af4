"""Projections: their kinds, sides and starts, on small numbers and on a real model's features."""

import pytest
import torch
from transformers import AutoModel

from kdalign.alignment.calibration import calibrate, start_projections
from kdalign.alignment.plan import Plan, ProjectionShape, ProjectionStyle
from kdalign.alignment.projections import Projections, first_weight
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import collate
from kdalign.data.epochs import in_order
from kdalign.errors import UsageError
from kdalign.models.architecture import Layer
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.training.learner import Learner
from support.classifier_setting import Setting
from support.tiny import one_line, save_model

PAIR = Layer("encoder", 0), Layer("encoder", 1)


def made(style, student=24, teacher=32):
    return Projections((ProjectionShape(*PAIR, student, teacher, style),), 0)


@pytest.mark.parametrize("kind", ["linear", "norm", "mlp", "orthogonal"])
def test_a_projection_has_the_weights_that_the_plan_counts_and_brings_one_width_to_the_other(kind):
    shape = ProjectionShape(*PAIR, 24, 32, ProjectionStyle(kind))
    projections = Projections((shape,), 0)
    assert projections(torch.randn(2, 5, 24), *PAIR).shape == (2, 5, 32)
    trained = sum(weight.numel() for weight in projections.parameters())
    assert trained == shape.parameters
    same = projections(torch.randn(2, 5, 24), PAIR[0], Layer("encoder", 3))
    assert same.shape == (2, 5, 24)  # another pair has none


def test_an_orthogonal_projection_stays_orthonormal_while_it_is_trained():
    projections = made(ProjectionStyle("orthogonal"))
    optimizer = torch.optim.AdamW(projections.parameters(), lr=0.1, weight_decay=0.1)
    target = torch.randn(2, 5, 32)
    x = torch.randn(2, 5, 24)
    before = None
    for _ in range(20):
        loss = (projections(x, *PAIR) - target).square().mean()
        before = before if before is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < before
    columns = projections(torch.eye(24)[None], *PAIR)[0]
    torch.testing.assert_close(columns @ columns.T, torch.eye(24), atol=1e-5, rtol=0)


def test_least_squares_finds_the_map_that_made_the_targets():
    truth = torch.randn(32, 24)
    x = torch.randn(500, 24)
    torch.testing.assert_close(first_weight("least-squares", x, x @ truth.T, True), truth, atol=1e-2, rtol=1e-2)


def test_least_squares_of_fewer_tokens_than_features_is_finite():
    weight = first_weight("least-squares", torch.randn(5, 24), torch.randn(5, 32), True)
    assert bool(weight.isfinite().all())


@pytest.mark.parametrize("scale", [0.2, 7.0])
def test_procrustes_finds_a_rotation_and_its_scale(scale):
    turned = torch.linalg.qr(torch.randn(32, 32))[0][:, :24]  # (32, 24), orthonormal columns
    x = torch.randn(500, 24)
    y = scale * x @ turned.T
    torch.testing.assert_close(first_weight("procrustes", x, y, True), scale * turned, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first_weight("procrustes", x, y, False), turned, atol=1e-4, rtol=1e-4)


def test_principal_directions_of_the_wider_side_go_either_way():
    basis = torch.linalg.qr(torch.randn(6, 6))[0]
    wide = torch.randn(2000, 6) * torch.tensor([9.0, 5, 3, 0.1, 0.1, 0.1]) @ basis.T + 100
    narrow = torch.randn(2000, 3)
    up = first_weight("pca", narrow, wide, True)  # (6, 3): from the narrow side to the wide one
    down = first_weight("pca", wide, narrow, True)  # (3, 6)
    torch.testing.assert_close(up, down.T)
    torch.testing.assert_close((basis[:, :3].T @ up).abs(), torch.eye(3), atol=0.1, rtol=0)


def test_what_cannot_start_or_would_collapse_is_refused_with_what_is_accepted():
    with pytest.raises(UsageError, match=r"a mlp projection cannot start from 'pca' \(accepted: random\)"):
        ProjectionStyle("mlp", start="pca")
    with pytest.raises(UsageError, match=r"accepted: align.projection=orthogonal with align.side=teacher"):
        ProjectionStyle("linear", side="teacher")


def first_parts(style, setting):
    """The first loss of the features with projections of a style."""
    plan = propose(setting.plan.teacher, setting.plan.student, options=PlanOptions(style=style))
    plan = calibrate(plan, setting.teacher, [collate(setting.data, range(8))], setting.device)
    projections = Projections(plan.projections, 0)
    student = setting.learner.student
    if style.start != "random":
        batches = [batch for _, batch in in_order(setting.data, 4)]
        start_projections(projections, plan, [setting.teacher.model], student, batches, setting.device)
    objective = build_classification_objective(Weights(hard=0, alpha=0, delta=0), plan, False)
    learner = Learner(student.eval(), projections, plan, [objective], (0, 1), False)
    batch = collate(setting.data, range(8))
    taught = setting.teacher(batch, learner.wanted_of_teacher)
    return objective(TermInputs(learner(batch.inputs, taught), taught, batch), count_units([batch])).parts


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("kind", "side", "start"),
    [
        ("linear", "student", "least-squares"),
        ("linear", "student", "procrustes"),
        ("norm", "student", "least-squares"),
        ("orthogonal", "student", "procrustes"),
        ("orthogonal", "teacher", "procrustes"),
    ],
)
def test_the_first_loss_is_lower_than_from_a_random_start(kind, side, start, shared):
    setting = Setting("bert", "bert", 24)
    fitted = first_parts(ProjectionStyle(kind, side, shared, start), setting)
    at_random = first_parts(ProjectionStyle(kind, side, shared), setting)
    assert float(fitted["cosine"]) < 0.9 * float(at_random["cosine"])


@pytest.mark.slow
def test_on_a_real_models_features_every_start_beats_chance(shared):
    import pandas as pd
    from transformers import AutoTokenizer

    path = shared / "models" / "minilm-l6-sst2"
    body, tokenizer = AutoModel.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)
    texts = pd.read_parquet(shared / "data" / "glue" / "sst2" / "validation.parquet")["sentence"][:100].tolist()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = body(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    teacher = states[4][real]
    directions = torch.linalg.eigh((teacher - teacher.mean(0)).T @ (teacher - teacher.mean(0)))[1].flip(1)[:, :192]
    student = states[3][real] @ directions  # a student of half the width, one layer behind
    distances = {}
    for start in ("random", "pca", "procrustes", "least-squares"):
        weight = torch.nn.Linear(192, 384, bias=False).weight.detach()
        weight = weight if start == "random" else first_weight(start, student, teacher, True)
        distances[start] = float(1 - torch.nn.functional.cosine_similarity(student @ weight.T, teacher).mean())
    assert distances["least-squares"] < distances["procrustes"] < distances["random"]
    assert distances["pca"] < 0.5 * distances["random"]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("narrow"), "bert", layers=2, width=16, seed=5)


@pytest.mark.slow
def test_a_run_with_fitted_projections_resumes_to_the_same_weights(kdalign, teacher, narrow, data, tmp_path):
    from safetensors.torch import load_file

    words = ("distill", "--teacher", teacher, "--student", narrow, "--task", "sst2", "--data", data, "--max-steps", 4)
    style = ("--set", "align.projection=orthogonal", "--set", "align.start=procrustes", "--set", "align.shared=true")
    words += (*style, "--set", "train.checkpoint_every=2", "--set", "train.precision=fp32")
    assert kdalign(*words, "--out", "whole")[0] == 0
    plan = Plan.from_json((tmp_path / "whole" / "plan.json").read_text())
    assert [shape.style for shape in plan.projections] == [ProjectionStyle("orthogonal", "student", True, "procrustes")]
    kept = load_file(tmp_path / "whole" / "projections.safetensors")
    assert any(name.startswith("maps.encoder_to_encoder") for name in kept)
    (tmp_path / "whole" / "record.json").unlink()
    status, _, err = kdalign("distill", "--out", "whole", "--resume")
    assert status == 0, err
    again = load_file(tmp_path / "whole" / "projections.safetensors")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_style_that_cannot_be_is_refused_before_anything_is_written(kdalign, teacher, narrow, data, tmp_path):
    words = ("distill", "--teacher", teacher, "--student", narrow, "--task", "sst2", "--data", data, "--out", "run")
    status, _, err = kdalign(*words, "--set", "align.side=teacher")
    assert status == 2
    assert "align.projection=orthogonal" in one_line(err)
    assert "must be 'linear'" in one_line(kdalign(*words, "--set", "align.projection=linaer")[2])
    assert not (tmp_path / "run").exists()
