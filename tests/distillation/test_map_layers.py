"""Maps by likeness: found on real tokens, kept in the plan, drawn, and trained with."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from kdalign import allow_code
from kdalign.alignment.calibration import measure_similarities
from kdalign.alignment.plan import Plan
from kdalign.alignment.propose import PlanOptions, map_similarities, propose, remap_plan
from kdalign.data.batches import collate
from kdalign.data.tasks import Examples
from kdalign.data.tokenization import tokenize_labelled
from kdalign.errors import UsageError
from kdalign.models.architecture import Architecture, Layer, Stack
from support.tiny import one_line, save_model, sentences, tiny_config


def shape(layers, width=32):
    return Architecture("bert", "masked", (Stack("encoder", layers, width, 4, 4, width // 4, 64),), 100, 1000, True)


ALIKE = {"encoder": np.array([[0.9, 0.8, 0.1, 0.0], [0.8, 0.7, 0.2, 0.6]])}


def test_a_measured_map_takes_the_best_path_and_says_on_what():
    plan = propose(shape(4), shape(2), "cka")
    assert (plan.choice, plan.chosen, plan.calibrated) == ("cka", "cka, not measured yet", False)
    found = remap_plan(plan, ALIKE, "12 tokens of sst2")
    assert found.maps[0].pairs == ((0, 0), (1, 1))  # 0.9 + 0.7 is more than 0.8 + 0.6
    assert found.chosen == "cka by similarity (CKA) over 12 tokens of sst2"
    assert Plan.from_json(found.to_json()) == found


def test_a_flow_gives_several_teacher_layers_their_shares():
    found = remap_plan(propose(shape(4), shape(2), "emd"), ALIKE, "x").maps[0]
    assert found.pairs == ((0, 0), (0, 1), (1, 2), (1, 3))
    assert found.weights == pytest.approx((0.25, 0.25, 0.25, 0.25))


def test_a_fixed_map_is_kept_and_every_alternative_has_its_score():
    found = remap_plan(propose(shape(4), shape(2), "last"), ALIKE, "x")
    assert found.maps[0].pairs == ((0, 2), (1, 3))
    scores = map_similarities(found)
    assert scores["this map"] == scores["last"] == pytest.approx((0.1 + 0.6) / 2)
    assert scores["cka"] == max(value for name, value in scores.items() if name != "emd") == pytest.approx(0.8)
    assert set(scores) == {"this map", "uniform", "first", "last", "skip", "spread", "cka", "emd"}
    assert map_similarities(propose(shape(4), shape(2))) == {}


def test_a_student_of_more_layers_than_its_teacher_can_be_mapped_by_likeness():
    rows = {"encoder": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])}
    assert remap_plan(propose(shape(2), shape(3), "cka"), rows, "x").maps[0].pairs == ((0, 0), (1, 0), (2, 1))


@allow_code()
def test_a_function_of_the_users_maps_layers_and_its_mistakes_are_named(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def upside_down(alike):\n    return [(0, 3, 1.0), (1, 0, 3.0)]\n"
        "def beyond(alike):\n    return [(0, 9, 1.0)]\nvalue = 3\n"
        "def matrix(alike):\n    return alike\n"
    )
    with pytest.raises(UsageError, match=r"matrix' failed .*accepted is a function that gives \(student layer"):
        remap_plan(propose(shape(4), shape(2), f"{file}:matrix"), ALIKE, "x")
    found = remap_plan(propose(shape(4), shape(2), f"{file}:upside_down"), ALIKE, "x").maps[0]
    assert (found.pairs, found.weights) == (((0, 3), (1, 0)), (0.25, 0.75))
    with pytest.raises(UsageError, match="the map names teacher layer 9; its encoder has layers 0 to 3"):
        remap_plan(propose(shape(4), shape(2), f"{file}:beyond"), ALIKE, "x")
    with pytest.raises(UsageError, match="is not a function of similarities"):
        propose(shape(4), shape(2), f"{file}:value")
    with pytest.raises(UsageError, match=r"unknown name in .*'upside_dwn'; did you mean 'upside_down'"):
        propose(shape(4), shape(2), f"{file}:upside_dwn")


def test_measured_maps_bring_their_own_weights_and_similarities_must_fit():
    with pytest.raises(UsageError, match="map 'cka' has weights lambda_l of its own"):
        propose(shape(4), shape(2), "cka", options=PlanOptions(weights=(1, 2)))
    with pytest.raises(UsageError, match="are not 2 rows of 4 numbers"):
        remap_plan(propose(shape(4), shape(2)), {"encoder": np.zeros((2, 3))}, "x")


def test_special_tokens_and_padding_say_nothing_of_likeness(teacher):
    """An outlier on [CLS] alone would make two unrelated models look alike."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts, labels = sentences(40, 9)
    encoded = tokenize_labelled(Examples("train", (tuple(texts),), np.array(labels)), tokenizer, 32)
    bodies = [AutoModel.from_config(tiny_config("bert", 2, 32, 4, vocab_size=len(tokenizer))).eval() for _ in range(2)]
    specials = torch.tensor([tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id])

    def shout(_module, args, output):
        loud = torch.isin(ids, specials)[..., None] * torch.sign(torch.arange(32) - 15.5) * 500
        return output + loud

    plan = propose(shape(2), shape(2))
    plain = measure_similarities(
        plan, [bodies[0]], bodies[1], [collate(encoded, range(40))], tokenizer.all_special_ids, torch.device("cpu")
    )[0]
    for body in bodies:
        body.encoder.layer[1].register_forward_hook(shout)
    batch = collate(encoded, range(40), width=32)
    ids = batch.inputs["input_ids"]
    loud, tokens = measure_similarities(
        plan, [bodies[0]], bodies[1], [batch], tokenizer.all_special_ids, torch.device("cpu")
    )
    assert tokens == int(encoded.lengths.sum()) - 2 * 40
    np.testing.assert_allclose(loud["encoder"], plain["encoder"], atol=1e-5)
    counted = measure_similarities(plan, [bodies[0]], bodies[1], [batch], [], torch.device("cpu"))[0]
    assert counted["encoder"][1, 1] > plain["encoder"][1, 1] + 0.2


@pytest.mark.slow
def test_layers_of_a_real_model_under_rotations_and_scales_are_mapped_back_exactly(shared):
    import pandas as pd

    from kdalign.alignment.similarity import monotone_path, similarities
    from kdalign.models.capture import CaptureSpec, capture

    body = AutoModel.from_pretrained(shared / "models" / "minilm-l6-sst2", dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-sst2")
    texts = pd.read_parquet(shared / "data" / "glue" / "sst2" / "validation.parquet")["sentence"][:60].tolist()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    layers = [Layer("encoder", number) for number in range(6)]
    with torch.no_grad(), capture(body, CaptureSpec(frozenset(layers))) as signals:
        body(**inputs)
    real = ~torch.isin(inputs["input_ids"], torch.tensor(tokenizer.all_special_ids))
    teachers = [signals.hidden[layer][real] for layer in layers]
    draw, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    found = 0
    for _ in range(50):
        truth = sorted(draw.choice(6, size=int(draw.integers(1, 6)), replace=False).tolist())
        students = []
        for layer in truth:
            turned = torch.linalg.qr(torch.randn(384, 384, dtype=torch.float64, generator=generator))[0]
            students.append(float(draw.uniform(0.1, 10)) * teachers[layer] @ turned)
        found += monotone_path(similarities(students, teachers)) == truth
    assert found == 50


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A student of its own: another seed, and half the teacher's width."""
    return save_model(tmp_path_factory.mktemp("other"), "bert", layers=2, width=16, seed=5)


def test_map_layers_shows_saves_and_draws_what_it_measured(kdalign, teacher, other, data, tmp_path):
    words = ("map-layers", "--teacher", teacher, "--student", other, "--map", "cka", "--task", "sst2", "--data", data)
    status, out, err = kdalign(*words, "--out", "plan.json", "--plot", "map.png")
    assert status == 0, err
    assert "cka by similarity (CKA) over" in " ".join(out.split())
    assert out.count("*") == 2
    assert max(map(len, out.splitlines())) <= 80
    plan = Plan.from_json((tmp_path / "plan.json").read_text())
    assert np.array(plan.similarities["encoder"]).shape == (2, 4)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = kdalign(*words, "--json", "--plot", "map.svg", "--map", "uniform")
    assert json.loads(out)["maps"][0]["pairs"] == [[0, 1], [1, 3]]
    assert json.loads(out)["similarities"]["encoder"] == [list(row) for row in plan.similarities["encoder"]]
    assert "<svg" in (tmp_path / "map.svg").read_text()


def test_a_student_learns_by_a_map_that_was_measured_and_the_run_keeps_it(kdalign, teacher, other, data, tmp_path):
    status, _, err = kdalign(
        *("distill", "--teacher", teacher, "--student", other, "--task", "sst2", "--data", data, "--map", "emd"),
        *("--delta", 0, "--max-steps", 2, "--out", "run"),
    )
    assert status == 0, err
    assert "map: emd by similarity (CKA) over" in " ".join(err.split())
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.calibrated
    assert len(plan.projections) == len(plan.maps[0].pairs) >= 4


def test_a_measured_plan_that_was_edited_is_followed_as_it_stands(kdalign, teacher, other, data, tmp_path):
    words = ("--teacher", teacher, "--student", other, "--task", "sst2", "--data", data)
    assert kdalign("map-layers", *words, "--map", "cka", "--out", "plan.json")[0] == 0
    tree = json.loads((tmp_path / "plan.json").read_text())
    tree["maps"][0]["pairs"] = [[0, 3], [1, 0]]
    for shape, (ours, theirs) in zip(tree["projections"], [(0, 3), (1, 0)], strict=True):
        shape["student"], shape["teacher"] = ["encoder", ours], ["encoder", theirs]
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    status, _, err = kdalign("distill", *words, "--plan", "plan.json", "--max-steps", 1, "--out", "run")
    assert status == 0, err
    assert Plan.from_json((tmp_path / "run" / "plan.json").read_text()).maps[0].pairs == ((0, 3), (1, 0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads": "Each"}, "heads"),
        ({"relations": "value"}, "relations"),
        ({"relation_heads": 5}, "5 relation heads do not divide"),
        ({"relation_heads": 0}, "0 relation heads do not divide"),
        ({"statistics": {"variance/encoder.1": -1.0}}, "variances must be above 0"),
        ({"similarities": {"encoder": [[0.1, 0.2, 0.3, float("nan")]] * 2}}, "NaN is not a JSON number"),
    ],
)
def test_a_plan_that_says_what_cannot_be_is_refused(change, named):
    tree = json.loads(propose(shape(4), shape(2)).to_json()) | change
    with pytest.raises(UsageError, match=named):
        Plan.from_json(json.dumps(tree))


def test_a_plan_that_maps_a_stack_twice_is_refused():
    tree = json.loads(propose(shape(4), shape(2)).to_json())
    tree["maps"] *= 2
    with pytest.raises(UsageError, match="maps a stack twice"):
        Plan.from_json(json.dumps(tree))


def test_dropout_has_no_say_in_likeness_and_a_models_mode_is_put_back(teacher):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts, labels = sentences(30, 9)
    encoded = tokenize_labelled(Examples("train", (tuple(texts),), np.array(labels)), tokenizer, 32)
    bodies = [AutoModel.from_config(tiny_config("bert", 2, 32, 4, vocab_size=len(tokenizer))) for _ in range(2)]
    found = []
    for training in (True, False):
        for body in bodies:
            body.train(training)
        batches = [collate(encoded, range(30))]
        found.append(
            measure_similarities(propose(shape(2), shape(2)), [bodies[0]], bodies[1], batches, [], torch.device("cpu"))[
                0
            ]["encoder"]
        )
        assert all(body.training is training for body in bodies)
    np.testing.assert_array_equal(*found)


def test_features_that_are_no_numbers_are_refused(teacher):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    texts, labels = sentences(8, 9)
    encoded = tokenize_labelled(Examples("train", (tuple(texts),), np.array(labels)), tokenizer, 32)
    bodies = [AutoModel.from_config(tiny_config("bert", 2, 32, 4, vocab_size=len(tokenizer))).eval() for _ in range(2)]
    bodies[0].encoder.layer[0].output.dense.weight.data[:] = float("nan")
    with pytest.raises(UsageError, match="are not finite"):
        measure_similarities(
            propose(shape(2), shape(2)), [bodies[0]], bodies[1], [collate(encoded, range(8))], [], torch.device("cpu")
        )


def test_models_of_few_positions_read_as_much_as_they_can(kdalign, data, tmp_path_factory):
    short = save_model(tmp_path_factory.mktemp("short"), "bert", layers=2, max_position_embeddings=20)
    words = ("map-layers", "--teacher", short, "--student", "layers=1", "--task", "sst2", "--data", data)
    assert kdalign(*words)[0] == 0
    status, _, err = kdalign(*words, "--max-length", 32)
    assert status == 2
    assert "--max-length 32 is more than the 20 positions" in one_line(err)
    assert "give --max-length 20 or less" in one_line(err)


def test_a_new_student_of_few_positions_reads_as_much_as_it_can(teacher, data):
    from kdalign.distillation.map_layers import CalibrationTexts, plan_layers

    texts = CalibrationTexts("sst2", str(data), examples=40)
    plan = plan_layers(str(teacher), "new:bert,layers=2,width=32,heads=4,positions=8", "cka", reading=texts)
    assert plan.similarities["encoder"]


def test_an_untrained_student_warns(kdalign, teacher, data):
    words = ("map-layers", "--teacher", teacher, "--task", "sst2", "--data", data, "--map", "cka")
    assert "untrained" in kdalign(*words, "--student", "layers=2", "--init", "random")[2]
    assert "untrained" in kdalign(*words, "--student", "new:bert,layers=2,width=32,heads=4")[2]
    assert "untrained" not in kdalign(*words, "--student", "layers=2")[2]
    run = ("distill", *words[1:], "--student", "layers=2", "--init", "random", "--max-steps", 1, "--out", "run")
    assert "untrained" in kdalign(*run)[2]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--map", "cka"), "--map 'cka' is measured on text: give --task and --data"),
        (("--plot", "map.png"), "--plot draws similarities, which are measured on text"),
        (("--plot", "map.gif"), "accepted are files that end in .png, .svg, .pdf"),
        (("--map", "cak"), "did you mean 'cka'"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(kdalign, teacher, words, named):
    status, _, err = kdalign("map-layers", "--teacher", teacher, *words)
    assert status == 2
    assert named in one_line(err)


@pytest.mark.slow
def test_layers_are_mapped_again_on_the_way_and_a_resumed_run_ends_in_the_same_weights(
    kdalign, teacher, other, data, tmp_path
):
    from safetensors.torch import load_file

    own = tmp_path / "own.py"  # every pair, weighted by its likeness: another map whenever the student has changed
    own.write_text(
        "def soft(alike):\n    return [(s, t, max(alike[s][t], 0.01)) for s in range(2) for t in range(4)]\n"
    )
    words = ("distill", "--teacher", teacher, "--student", other, "--task", "sst2", "--data", data)
    words += (
        "--map",
        f"{own}:soft",
        "--set",
        "align.remap_every=3",
        "--set",
        "align.shared=true",
        "--set",
        "train.checkpoint_every=4",
    )
    words += ("--max-steps", 8, "--lr", "0.02", "--precision", "fp32", "--set", "objective.delta=0")
    status, _, err = kdalign(*words, "--out", "run")
    assert status == 0, err
    run = tmp_path / "run"
    events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    maps = [event for event in events if event["kind"] == "map"]
    assert [event["step"] for event in maps] == [3, 6]
    plan = Plan.from_json((run / "plan.json").read_text())
    assert [list(pair) for pair in plan.maps[0].pairs] == maps[-1]["pairs"]
    assert {name for name in plan.statistics} == {f"variance/encoder.{number}" for number in range(4)}
    earlier = json.loads((run / "checkpoints" / "step-4" / "progress.json").read_text())["plan"]
    assert Plan.from_json(earlier) != plan
    before = load_file(run / "student" / "model.safetensors") | load_file(run / "projections.safetensors")
    (run / "record.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-8")  # so that the map of step 3 is followed first, not the last one
    assert f"runs code: {own}" in err
    status, _, err = kdalign("distill", "--out", "run", "--resume")
    assert status == 2, "the recipe names the code now, not the user"
    assert "--allow code" in err
    status, _, err = kdalign("distill", "--out", "run", "--resume", "--allow", "code")
    assert status == 0, err
    after = load_file(run / "student" / "model.safetensors") | load_file(run / "projections.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()] == events


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "map 'uniform' is fixed: give --map cka or emd"),
        (("--map", "cka"), "projections need align.shared=true"),
        (("--map", "cka", "--set", "align.shared=true", "--set", "objective.delta=1"), None),
    ],
)
def test_what_cannot_be_mapped_again_is_refused(kdalign, teacher, other, data, words, named):
    base = ("distill", "--teacher", teacher, "--student", other, "--task", "sst2", "--data", data, "--dry-run")
    status, _, err = kdalign(*base, "--set", "align.remap_every=3", *words)
    assert status == (0 if named is None else 2)
    assert named is None or named in one_line(err)
