"""The numerical contract on models of images: capture, common grids, splitting a step, changed images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.data.media.augmentation import ImageAugmentation
from kdalign.data.media.grid import Grid
from kdalign.data.tasks import ClassificationTask, DataSource
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.classification import ClassificationAdapter
from kdalign.models import student
from kdalign.models.architecture import Layer, attention_modules, blocks, describe, layout_of
from kdalign.models.capture import CaptureSpec, enable_capture, forward
from kdalign.models.grids import common_grid, grid_of, layer_grids, move_to_grid
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import TrainSettings
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from kdalign.training.optimizer import make_optimizer
from support.covering import each_once
from support.media_setting import (
    CLASSES,
    IMAGE_TYPES,
    Setting,
    images,
    load,
    new_image_model,
    on_common_grid,
    reader_of,
    rows_of,
    save_image_model,
    saved,
    striped,
    with_media,
)

EVERY = pytest.mark.parametrize("kind", IMAGE_TYPES)


def as_positions(states):
    """(batch, positions, width) of a model's own hidden states, which may be maps."""
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


@EVERY
def test_what_is_captured_is_what_the_model_computes(kind):
    net = load(saved(kind))
    inputs = collate(images(reader_of(saved(kind)).media), range(3)).inputs
    layers = frozenset(blocks(net))
    with torch.no_grad():
        plain = net(pixel_values=inputs["pixel_values"], output_hidden_states=True)
        order = torch.tensor([0, 1])
        signals = forward(enable_capture(net), inputs, CaptureSpec(layers, answers=True), order)
        early = forward(net, inputs, CaptureSpec(layers, answers=False), order)
    assert torch.equal(signals.logits, plain.logits)
    assert not early.logits.numel()
    for layer in layers:
        theirs = as_positions(plain.hidden_states[layer.number + 1])
        assert torch.equal(signals.hidden[layer], theirs)
        assert torch.equal(early.hidden[layer], theirs)
    assert len({state.std().item() for state in signals.hidden.values()}) == len(layers), "layers differ"


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_captured_maps_are_probabilities_and_those_of_eager_attention(kind):
    net = load(saved(kind))
    inputs = collate(images(reader_of(saved(kind)).media), range(3)).inputs
    layers, stack = frozenset(attention_modules(net)), frozenset({"vision"})
    with torch.no_grad():
        signals = forward(
            enable_capture(net), inputs, CaptureSpec(attention=layers, embeddings=stack), torch.tensor([0, 1])
        )
        net.set_attn_implementation("eager")
        eager = net(pixel_values=inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    positions = 16 + layout_of(net.config).class_tokens
    assert signals.attention.keys() == layers
    for layer, maps in signals.attention.items():
        assert maps.shape == (3, 4, positions, positions)
        torch.testing.assert_close(maps.sum(-1), torch.ones(3, 4, positions))
        torch.testing.assert_close(maps, eager.attentions[layer.number], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(signals.embeddings["vision"], eager.hidden_states[0])


def test_features_are_moved_to_a_grid_by_the_means_of_its_cells_worked_by_hand():
    cells = torch.arange(16.0)
    with_tokens = torch.cat([torch.tensor([100.0, 200.0]), cells])[None, :, None]

    def moved(states, own, wanted):
        return move_to_grid(states, own, wanted).flatten().tolist()

    assert moved(cells[None, :, None], Grid(0, 4, 4), Grid(0, 2, 2)) == [2.5, 4.5, 10.5, 12.5]
    assert moved(with_tokens, Grid(2, 4, 4), Grid(0, 2, 2)) == [2.5, 4.5, 10.5, 12.5]
    assert moved(with_tokens, Grid(2, 4, 4), Grid(1, 2, 2)) == [100, 2.5, 4.5, 10.5, 12.5]
    assert moved(with_tokens, Grid(2, 4, 4), Grid(1, 4, 4)) == [100, *range(16)]
    assert moved(cells[None, :8, None], Grid(0, 2, 4), Grid(0, 2, 2)) == [0.5, 2.5, 4.5, 6.5]
    assert moved(cells[None, :8, None], Grid(0, 4, 2), Grid(0, 2, 2)) == [1, 2, 5, 6]
    # Of three cells on two: the middle one belongs to both.
    assert moved(cells[None, :9, None], Grid(0, 3, 3), Grid(0, 2, 2)) == [2, 3, 5, 6]
    assert moved(cells[None, :6, None], Grid(0, 2, 3), Grid(0, 1, 1)) == [2.5]


def test_the_same_grid_changes_no_bit():
    states = torch.randn(2, 18, 5)
    assert move_to_grid(states, Grid(2, 4, 4), Grid(2, 4, 4)) is states


@pytest.mark.parametrize("up", [False, True], ids=["floor", "ceil"])
def test_a_grid_is_found_by_its_number_of_cells_whatever_the_image(up):
    for height in range(8, 40):
        for width in range(8, 40):
            for stride in (2, 4, 8):
                rows, columns = (-(-side // stride) if up else side // stride for side in (height, width))
                assert grid_of(rows * columns + 1, 1, (height, width)) == Grid(1, rows, columns)


def test_positions_that_are_no_grid_of_the_images_shape_are_refused():
    for positions, tokens, image in ((18, 1, (32, 32)), (1, 1, (32, 32)), (9, 0, (64, 16))):
        with pytest.raises(UsageError, match=f"{positions} positions are no grid over an image of {image[0]} x"):
            grid_of(positions, tokens, image)


def test_layers_of_rectangular_images_have_rows_and_columns_of_their_own():
    tall = (48, 24)
    for kind, expected in {
        "vit": [Grid(1, 6, 3)] * 4,
        "deit": [Grid(2, 6, 3)] * 4,
        "convnext": [Grid(0, 12, 6), Grid(0, 6, 3), Grid(0, 3, 1)],
        "resnet": [Grid(0, 12, 6), Grid(0, 6, 3), Grid(0, 3, 2)],
        "swin": [Grid(0, 6, 3), Grid(0, 3, 2), Grid(0, 3, 2)],
    }.items():
        config = new_image_model(IMAGE_TYPES[kind]).config
        if kind in ("vit", "deit"):
            config.image_size = tall
        assert layer_grids(config, tall) == expected, kind


def test_the_common_grid_is_the_smallest_with_the_tokens_that_all_have():
    vit, deit, resnet = (new_image_model(IMAGE_TYPES[kind]).config for kind in ("vit", "deit", "resnet"))
    assert common_grid([(vit, (32, 32)), (deit, (32, 32))]) == Grid(1, 4, 4)
    assert common_grid([(vit, (32, 32)), (resnet, (48, 32))]) == Grid(0, 3, 2)


@EVERY
def test_both_models_are_compared_cell_by_cell_on_the_common_grid(kind):
    setting = Setting(kind)
    batch, grid = collate(setting.data, range(8)), setting.data.media.grid
    wanted = setting.learner.wanted_of_teacher
    with torch.no_grad():
        taught = setting.teacher(batch, wanted)
        learnt = setting.learner(batch.inputs, taught)
    pixels = batch.teacher_inputs["pixel_values"], batch.inputs["pixel_values"]
    nets = setting.teacher.model, setting.learner.student
    for net, found, read in zip(nets, (taught, learnt), pixels, strict=True):
        with torch.no_grad():
            states = net.eval()(pixel_values=read, output_hidden_states=True).hidden_states
        tokens = layout_of(net.config).class_tokens
        for layer, moved in found.hidden.items():
            own = as_positions(states[layer.number + 1])
            side = int((own.size(1) - tokens) ** 0.5)
            maps = own[:, tokens:].transpose(1, 2).unflatten(2, (side, side))
            cells = F.adaptive_avg_pool2d(maps, (grid.rows, grid.columns)).flatten(2).transpose(1, 2)
            expected = torch.cat([own[:, : grid.class_tokens], cells], dim=1)
            torch.testing.assert_close(moved, expected, msg=f"{kind} {layer}")
    parts = setting.objective(TermInputs(learnt, taught, batch), count_units([batch])).parts
    distances = [
        1 - F.cosine_similarity(learnt.projected[pair], learnt.targets[pair], dim=-1) for pair in learnt.projected
    ]
    assert float(parts["cosine"]) == pytest.approx(float(torch.stack(distances).mean()), rel=1e-4)
    assert count_units([batch])[Unit.COMPARED] == 8 * grid.positions


@pytest.mark.parametrize("kind", ["swin", "convnext", "resnet"])
def test_stages_of_other_widths_are_joined_by_projections_that_are_optimised_once(kind):
    setting = Setting(kind)
    maps = dict(setting.learner.projections.named_parameters())
    theirs, ours = (describe(net.config).stacks[0] for net in (setting.teacher.model, setting.learner.student))
    shapes = {tuple(weight.shape) for weight in maps.values()}
    widths = {
        ((theirs.widths or (theirs.width,) * theirs.layers)[b.number], (ours.widths or (ours.width,) * 9)[a.number])
        for a, b, _ in setting.plan.pairs
    }
    assert shapes == {pair for pair in widths if pair[0] != pair[1]}
    optimizer = make_optimizer(setting.learner, TrainSettings())
    for weight in maps.values():
        assert sum(weight is p for group in optimizer.param_groups for p in group["params"]) == 1
    before = {name: weight.detach().clone() for name, weight in maps.items()}
    setting.gradient([collate(setting.data, range(8))])
    optimizer.step()
    assert all(not torch.equal(before[name], weight) for name, weight in maps.items())


@EVERY
def test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient(kind):
    assert_splits_alike(Setting(kind))


def assert_splits_alike(setting):
    """The gradient of a step of eight rows is that of eight micro-batches, and of two ranks."""
    whole = setting.gradient(micro_batches(setting.data, range(8), 0, 1, None))
    ones = micro_batches(setting.data, range(8), 0, 1, 1)
    ranks = [batch for rank in (0, 1) for batch in micro_batches(setting.data, range(8), rank, 2, 4)]
    assert [len(batch.counted) for batch in ranks] == [4, 4]
    for shares in (ones, ranks):
        again = setting.gradient(shares)
        assert again.keys() == whole.keys()
        for name, gradient in whole.items():
            largest = max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(again[name], gradient, atol=1e-5 * largest, rtol=1e-4, msg=name)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3


def statistics_of(net):
    return {name: value.clone() for name, value in net.state_dict().items() if "running" in name}


def test_a_step_in_training_mode_is_divided_alike_if_batch_norm_keeps_its_statistics():
    setting = Setting("resnet", ours="layers=3")
    setting.learner.train()
    setting.gradient([collate(setting.data, range(8))])
    before = statistics_of(setting.learner.student)
    assert min(float(value.std()) for value in before.values()) > 0.001, "moved from 0 and 1"
    setting.learner.keeps_statistics = True
    setting.learner.train()
    assert_splits_alike(setting)
    after = statistics_of(setting.learner.student)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    trained = {name for name, parameter in setting.learner.named_parameters() if parameter.grad is not None}
    norms = {f"student.{name}.weight" for name, module in setting.learner.student.named_modules()
             if isinstance(module, torch.nn.BatchNorm2d)}  # fmt: skip
    assert norms
    assert norms <= trained


def test_the_micro_batch_decides_the_gradient_if_batch_norm_sees_it():
    setting = Setting("convnext")  # whose student is a new ResNet
    setting.learner.train()
    before = statistics_of(setting.learner.student)
    with pytest.raises(AssertionError, match="student"):
        assert_splits_alike(setting)
    after = statistics_of(setting.learner.student)
    assert not any(torch.equal(value, after[name]) for name, value in before.items())


@EVERY
def test_a_student_equal_to_its_teacher_has_no_loss_from_it_and_no_gradient(kind):
    weights = Weights(hard=0, alpha=1, beta=1, gamma=1, delta=float(kind in ("vit", "deit")), temperature=2)
    big = load(saved(kind))
    twin = load(saved(kind))
    reader, device = reader_of(saved(kind)).media, torch.device("cpu")
    batch = collate(on_common_grid(images(reader), twin.config, big.config, reader), range(8))
    teacher = ComputedTeacher(big, (0, 1), torch.float32, device)
    plan = calibrate(propose(describe(twin.config), describe(twin.config)), teacher, [batch], device)
    objective = build_classification_objective(weights, plan, regression=False)
    learner = Learner(twin, Projections((), 0), plan, [objective], (0, 1), False).eval()
    taught = teacher(batch, learner.wanted_of_teacher)
    breakdown = objective(TermInputs(learner(batch.inputs, taught), taught, batch), count_units([batch]))
    breakdown.total.backward()
    assert float(breakdown.total.detach()) == pytest.approx(0, abs=1e-5)
    assert max(float(p.grad.abs().max()) for p in twin.parameters() if p.grad is not None) < 1e-4


TERMS = {"hard": "hard", "soft": "alpha", "cosine": "beta", "euclid": "gamma"}


@pytest.mark.parametrize(("kind", "term"), each_once(IMAGE_TYPES, TERMS))
def test_each_term_alone_falls_below_a_tenth_of_its_start_on_one_batch(kind, term):
    alone = {weight: float(name == term) for name, weight in TERMS.items()}
    setting = Setting(kind, Weights(temperature=2, delta=0, **alone))
    batch = collate(setting.data, range(8))
    units = count_units([batch])
    optimizer = torch.optim.AdamW(setting.learner.parameters(), lr=5e-3, weight_decay=0)
    start = value = float(setting.breakdown(batch, units).parts[term])
    for _ in range(400):
        optimizer.zero_grad()
        breakdown = setting.breakdown(batch, units)
        breakdown.total.backward()
        optimizer.step()
        value = float(breakdown.parts[term])
        if value < start / 10:
            break
    assert start > 1e-3
    assert value < start / 10


def test_a_teacher_with_batch_norm_stays_as_it_is_while_its_student_trains():
    setting = Setting("resnet")
    setting.learner.train()
    before = {name: value.clone() for name, value in setting.teacher.model.state_dict().items()}
    setting.gradient([collate(setting.data, range(8))])
    assert not setting.teacher.model.training
    assert not any(parameter.requires_grad for parameter in setting.teacher.model.parameters())
    after = setting.teacher.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any("running_mean" in name for name in before)


def test_each_model_reads_images_of_its_own_size_and_normalisation():
    setting = Setting("resnet")  # a ViT of 28 x 28 learns from a ResNet of 32 x 32
    batch = collate(setting.data, [3, 5])
    decoded = [striped(3), striped(5)]
    ours, theirs = batch.inputs["pixel_values"], batch.teacher_inputs["pixel_values"]
    assert ours.shape == (2, 3, 28, 28)
    assert torch.equal(ours, setting.reader.inputs(decoded)["pixel_values"])
    assert torch.equal(theirs, setting.teacher_reader.inputs(decoded)["pixel_values"])
    # The teacher's processor keeps the size: its pixels are those of the file, from -1 to 1.
    torch.testing.assert_close(theirs[0], torch.tensor(decoded[0]).permute(2, 0, 1) / 127.5 - 1)
    assert batch.labels.tolist() == [1, 1]


def test_an_image_is_moved_and_mirrored_worked_by_hand():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)[:, :, None].repeat(3, axis=2)
    drawn = set()
    for seed in range(60):
        change = ImageAugmentation(shift=0.25, flip=True)
        found = change(image, np.random.default_rng(seed))
        generator = np.random.default_rng(seed)
        down, right, mirrored = int(generator.integers(-1, 2)), int(generator.integers(-1, 2)), generator.integers(2)
        places = np.arange(4)
        rows, columns = np.clip(places - down, 0, 3), np.clip(places - right, 0, 3)  # the border is repeated
        expected = image[rows][:, columns]
        assert np.array_equal(found, expected[:, ::-1] if mirrored else expected)
        drawn.add((down, right, bool(mirrored)))
    assert len(drawn) == 18
    still = ImageAugmentation(shift=0.25)(image, np.random.default_rng(0))
    assert sorted(still[:, 0, 0]) == still[:, 0, 0].tolist(), "without flip none is mirrored"


CHANGE = ImageAugmentation(0.3, flip=True)


def test_both_models_see_the_same_changed_image_though_they_read_it_in_their_own_ways():
    setting = Setting("resnet")
    batch = collate(with_media(setting.data, augmentation=CHANGE), [3, 5], draw=(7, 2))
    decoded = [CHANGE(striped(row), np.random.default_rng([7, 2, row])) for row in (3, 5)]
    assert not np.array_equal(decoded[0], striped(3))
    assert torch.equal(batch.inputs["pixel_values"], setting.reader.inputs(decoded)["pixel_values"])
    assert torch.equal(batch.teacher_inputs["pixel_values"], setting.teacher_reader.inputs(decoded)["pixel_values"])


def test_a_change_depends_on_seed_epoch_and_row_alone():
    data = with_media(images(reader_of(saved("vit")).media), augmentation=CHANGE)
    alone = collate(data, [5], draw=(4, 2)).inputs["pixel_values"][0]
    among = collate(data, [2, 5, 7], draw=(4, 2)).inputs["pixel_values"][1]
    assert torch.equal(alone, among)
    others = [collate(data, [5], draw=draw).inputs["pixel_values"][0] for draw in ((4, 3), (5, 2))]
    assert not any(torch.equal(alone, other) for other in others)
    assert not torch.equal(others[0], others[1])


def test_a_teacher_whose_classes_are_in_another_order_is_read_by_their_names(tmp_path):
    model = load(saved("vit"))
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0).clone())
    model.config.id2label, model.config.label2id = {0: "down", 1: "across"}, {"down": 0, "across": 1}
    task = ClassificationTask("it", ("image",), CLASSES, ("accuracy",), DataSource(), modality="image")
    adapter = ClassificationAdapter(task, 1)
    assert adapter.output_order(model) == (1, 0)
    batch = collate(images(reader_of(saved("vit")).media), range(4))
    teachers = [
        ComputedTeacher(net, adapter.output_order(net), torch.float32, torch.device("cpu"))
        for net in (load(saved("vit")), model)
    ]
    torch.testing.assert_close(*(teacher(batch, CaptureSpec()).logits for teacher in teachers))


def test_grey_images_are_read_as_their_luminance_by_a_model_of_one_channel(tmp_path):
    folder = save_image_model(tmp_path, IMAGE_TYPES["vit"] + ",channels=1")
    grey = np.full((32, 32, 3), 51, dtype=np.uint8)
    read = reader_of(folder).media.inputs([grey])["pixel_values"]
    assert read.shape == (1, 1, 32, 32)
    torch.testing.assert_close(read, torch.full_like(read, 51 / 127.5 - 1))


def test_a_cut_student_of_images_is_the_teachers_layers_embeddings_and_head():
    big = load(saved("vit"))
    small = student.copy_layers(big, {"vision": (1, 3)})
    theirs, ours = blocks(big), blocks(small)
    for layer, block in ours.items():
        source = dict(theirs[Layer("vision", (1, 3)[layer.number])].named_parameters())
        for name, weight in block.named_parameters():
            assert torch.equal(weight, source[name]), name
    whole = student.copy_layers(big, {"vision": range(4)}).eval()
    pixels = reader_of(saved("vit")).media.inputs([striped(0)])
    with torch.no_grad():
        assert torch.equal(whole(**pixels).logits, big(**pixels).logits)
    assert small.config.id2label == dict(enumerate(CLASSES))


def test_rows_name_their_content_and_not_their_place():
    encoded = [b"one", b"two", b"one"]
    rows = rows_of("image", encoded)
    assert rows[0] == rows[2] != rows[1]
