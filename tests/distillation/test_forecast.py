"""A run in figures from configurations alone, worked out by hand on tiny ones."""

import json
from dataclasses import replace

import pytest
import yaml

from kdalign.distillation import memory
from kdalign.distillation.forecast import LIBRARIES_ON_GPU, forecast
from kdalign.errors import UsageError
from kdalign.models import hardware
from kdalign.models.hardware import GPUS, Hardware
from kdalign.recipe import build_recipe
from kdalign.training.memory import MemoryPart
from support.tiny import one_line

WIDTH, INNER, LAYERS, TEACHERS_LAYERS, WORDS, LENGTH = 32, 64, 2, 4, 300, 16
LAYER = 4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH
"""Weights of a layer: queries, keys, values, output; gate, up and down; two norms."""
OUTSIDE = WORDS * WIDTH + WIDTH
"""Embeddings, which are the head, and the last norm."""
STUDENT, TEACHER = OUTSIDE + LAYERS * LAYER, OUTSIDE + TEACHERS_LAYERS * LAYER
DEVICE = Hardware("a device", flops=1e12, memory=10**10, bandwidth=None, link=None)


def flops_of_token(layers):
    """Operations of a forward for each token: two for each weight of a product, and both products of attention."""
    return 2 * WORDS * WIDTH + layers * (2 * (LAYER - 2 * WIDTH) + 2 * 2 * LENGTH * WIDTH)


@pytest.fixture
def recipe_of(tmp_path):
    """A recipe on a folder with nothing but a config.json; without a tokenizer, and without texts."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": WORDS, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": TEACHERS_LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text(json.dumps(config))

    def build(**keys):
        tree = {
            "teacher": str(tmp_path / "teacher"), "student": f"layers={LAYERS}", "data.task": "lm:text",
            "data.folder": str(tmp_path / "texts"), "data.max_length": LENGTH, "train.batch_size": 8,
            "train.max_tokens": 8 * LENGTH * 100, "objective.beta": 0, "objective.gamma": 0, "objective.delta": 0,
        }  # fmt: skip
        return build_recipe(None, {**tree, **{key.replace("__", "."): value for key, value in keys.items()}})

    return build


def only(recipe, *given, **more):
    [found] = forecast(recipe, *given, **more)
    return found


def test_speed_and_hours_are_those_of_the_peaks_share(recipe_of, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = only(recipe_of(), 1, DEVICE, 0.5)
    assert (found.teachers, found.student) == ({str(tmp_path / "teacher"): TEACHER}, (f"layers={LAYERS}", STUDENT))
    # Rotary angles are a product, too, of a few numbers.
    assert found.teacher_flops == pytest.approx(flops_of_token(TEACHERS_LAYERS), rel=1e-3)
    # A backward has the gradients of both operands of each product.
    assert found.student_flops == pytest.approx(3 * flops_of_token(LAYERS), rel=1e-3)
    assert found.tokens_per_second == pytest.approx(0.5e12 / (found.teacher_flops + found.student_flops))
    assert found.steps == 100
    assert found.hours == pytest.approx(100 * 8 * LENGTH / found.tokens_per_second / 3600)
    assert found.rows.tokens == LENGTH
    missing = f"model {str(tmp_path / 'teacher')!r} has no tokenizer: it holds no tokenizer.json"
    data = f"no data folder {str(tmp_path / 'texts')!r} (accepted: a folder that holds <split>.parquet|csv|tsv|jsonl)"
    assert found.notes[0] == f"every row is taken to have {LENGTH} tokens: {missing}; {data}"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.slow
def test_recomputed_layers_cost_their_forward_again_and_a_cached_teacher_nothing(recipe_of):
    plain = only(recipe_of(), 1, DEVICE)
    again = only(recipe_of(train__gradient_checkpointing=True), 1, DEVICE)
    head = 2 * WORDS * WIDTH
    assert again.student_flops - plain.student_flops == flops_of_token(LAYERS) - head
    cached = only(recipe_of(cache__folder="auto"), 1, DEVICE)
    assert cached.teacher_flops == 0
    assert cached.student_flops == plain.student_flops


def test_the_slowest_of_operations_memory_and_communication_decides(recipe_of):
    plain = only(recipe_of(), 2, DEVICE).time
    traffic = 2 * TEACHER + 4 * 3 * STUDENT + 2 * (4 + 8) * STUDENT + 4 * STUDENT
    assert plain.traffic == traffic  # both models' passes; then the optimizer's reads and writes
    slow_memory = only(recipe_of(), 2, replace(DEVICE, bandwidth=traffic / 7.0)).time
    assert (slow_memory.memory, slow_memory.seconds) == (pytest.approx(7), pytest.approx(7))
    slow_link = only(recipe_of(), 2, replace(DEVICE, link=plain.sent / 9.0)).time
    assert (slow_link.communication, slow_link.seconds) == (pytest.approx(9), pytest.approx(9))
    assert plain.seconds == plain.compute == pytest.approx(plain.operations / 0.4e12)


def test_ranks_send_gradients_once_or_gather_weights_in_every_micro_batch(recipe_of):
    assert only(recipe_of(), 1, DEVICE).time.sent == 0
    assert only(recipe_of(), 4, DEVICE).time.sent == 2 * 4 * STUDENT * 3 // 4
    sharded = only(recipe_of(train__sharding="fsdp2", train__micro_batch=1), 4, DEVICE)
    assert (sharded.rows.micro_batch, sharded.rows.steps_of) == (1, 2)
    gathered = 4 * OUTSIDE + 2 * 4 * LAYERS * LAYER + 2 * TEACHER  # the teacher in bfloat16
    assert sharded.time.sent == 2 * (gathered + 4 * STUDENT) * 3 // 4


def test_what_is_recomputed_counts_in_the_formula_as_inputs_and_one_layer(recipe_of, monkeypatch):
    def refuse(*_):
        raise LookupError("nothing can be counted")

    monkeypatch.setattr(memory, "_trace", refuse)
    plain, again = (only(recipe_of(train__gradient_checkpointing=each), 1, DEVICE) for each in (False, True))
    tokens, heads = 8 * LENGTH, 4
    layer = tokens * WIDTH * 34 + 5 * heads * LENGTH * tokens  # in bfloat16
    of = MemoryPart.ACTIVATIONS
    assert plain.memory.phases["training"][of] == LAYERS * layer
    assert again.memory.phases["training"][of] == layer + LAYERS * 4 * tokens * WIDTH
    assert "the memory is rough: by a formula, since nothing can be counted" in again.notes


@pytest.mark.slow
@pytest.mark.usefixtures("measured")
def test_a_step_of_two_tokenizers_is_counted(recipe_of, tmp_path):
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    (tmp_path / "student").mkdir()
    (tmp_path / "student/config.json").write_text(json.dumps(config | {"vocab_size": WORDS - 7}))
    found = only(recipe_of(student=str(tmp_path / "student")), 1, DEVICE)
    assert any("the tokenizers are taken to differ" in note for note in found.notes)
    assert not found.memory.missing


@pytest.mark.slow
@pytest.mark.usefixtures("measured")
def test_ranks_hold_all_or_their_share(recipe_of):
    alone, both = only(recipe_of(), 1, DEVICE).memory, only(recipe_of(), 2, DEVICE).memory
    assert alone.missing == both.missing == ""
    step = "the optimizer's step"
    whole = {
        MemoryPart.BASE: LIBRARIES_ON_GPU, MemoryPart.STUDENT: 4 * STUDENT, MemoryPart.TEACHER: 2 * TEACHER,
        MemoryPart.MOMENTS: 8 * STUDENT, MemoryPart.GRADIENTS: 4 * STUDENT,
    }  # fmt: skip
    assert {part: size for part, size in alone.phases[step].items() if size} == whole
    assert {part: size for part, size in both.phases[step].items() if size} == whole | {MemoryPart.BUCKETS: 4 * STUDENT}
    sharded = only(recipe_of(train__sharding="fsdp2"), 2, DEVICE).memory
    shares = {part: size // (1 if part is MemoryPart.BASE else 2) for part, size in whole.items()}
    assert {part: size for part, size in sharded.phases[step].items() if size} == shares
    training = sharded.phases["training"]
    # The teacher's head; of the student what is in no layer, two layers, and while gradients are reduced two copies of
    # a layer, at the end one of what is in no layer.
    forward = 2 * WORDS * WIDTH + 4 * (OUTSIDE + 2 * LAYER)
    assert training[MemoryPart.GATHERED] in (forward, forward + 4 * 2 * LAYER, forward + 4 * OUTSIDE)
    assert sharded.phases["monitoring"][MemoryPart.GATHERED] == 4 * (OUTSIDE + 2 * LAYER)


def loading(recipe, ranks):
    """What a rank holds while models load, without libraries."""
    found = only(recipe, ranks, DEVICE)
    parts = {part: size for part, size in found.memory.phases["loading"].items() if size}
    assert parts.pop(MemoryPart.BASE) == LIBRARIES_ON_GPU
    [whole] = [note for note in found.notes if "first rank" in note] or [None]
    return parts, whole


@pytest.mark.slow
def test_ranks_load_their_share_of_both_models_unless_the_teacher_first_runs_by_itself(recipe_of, tmp_path):
    parts, note = loading(recipe_of(train__sharding="fsdp2"), 2)
    # Scored in float32, then there for a moment in bfloat16, too; gathered are what is in no layer and two layers.
    share = {MemoryPart.TEACHER: (4 + 2) * TEACHER // 2, MemoryPart.GATHERED: 4 * (OUTSIDE + 2 * LAYER)}
    assert (parts, note is not None) == (share, True)
    narrower = {"student": f"layers={LAYERS},width=16"}
    for alone, ranks in (({}, 1), ({"cache__folder": str(tmp_path / "cache")}, 2), (narrower, 2)):
        parts, note = loading(recipe_of(train__sharding="fsdp2", **alone), ranks)
        assert (parts[MemoryPart.TEACHER], note) == (4 * TEACHER, None)


def test_a_served_teacher_and_a_single_rank_that_shards_are_said_so(recipe_of, tmp_path):
    alone = {"teacher": "openai:large", "student": str(tmp_path / "teacher"), "served__base_url": "http://nowhere/v1"}
    served, soft = only(recipe_of(**alone), 1, DEVICE), only(recipe_of(), 1, DEVICE)
    assert served.teachers == {}
    note = "the time and memory of openai:large are not counted"
    assert [sum(note in each for each in found.notes) for found in (served, soft)] == [1, 0]
    note = "train.sharding=fsdp2 is for several ranks, and this is one: give --ranks N"
    assert [note in only(recipe_of(train__sharding="fsdp2"), ranks, DEVICE).notes for ranks in (1, 2)] == [True, False]


def test_a_run_that_does_not_fit_is_said_so(recipe_of):
    fitting = only(recipe_of(), 2, DEVICE)
    assert (fitting.fits, [note for note in fitting.notes if "does not fit" in note]) == (True, [])
    tiny = replace(DEVICE, memory=LIBRARIES_ON_GPU)
    for keys, mend in (({}, "share the models (--set train.sharding=fsdp2), or take a smaller train.micro_batch"),
                       ({"train__sharding": "fsdp2"}, "take a smaller train.micro_batch")):  # fmt: skip
        found = only(recipe_of(**keys), 2, tiny)
        [said] = [note for note in found.notes if "does not fit" in note]
        assert not found.fits
        assert said.startswith(f"{found.memory.phase} does not fit in a rank's memory: {mend}")


def test_real_texts_and_their_tokenizer_are_read_if_they_are_there(teacher, data):
    recipe = build_recipe(
        None, {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
    )
    found = only(recipe, 1, DEVICE)
    assert not any("taken to have" in note for note in found.notes)
    assert found.rows.tokens < recipe.data.max_length
    assert found.steps == pytest.approx(3 * found.rows.epoch / 64)


def test_this_machine_is_measured_and_shared_by_its_ranks(recipe_of, monkeypatch):
    monkeypatch.setattr(hardware, "peak_flops", lambda *_: 6e9)
    monkeypatch.setattr(hardware, "measure_bandwidth", lambda *_: 4e9)
    one, two = (only(recipe_of(train__device="cpu"), ranks) for ranks in (1, 2))
    assert (one.hardware.flops, two.hardware.flops, two.hardware.bandwidth) == (6e9, 3e9, 2e9)
    assert two.hardware.memory == one.hardware.memory // 2
    assert two.time.communication is None
    assert any("give --bandwidth" in note for note in two.notes)


def test_a_product_of_matrices_takes_a_multiplication_and_an_addition_for_each_term():
    rows, columns, inner = 4, 4, 4
    assert hardware.product_flops(4) == rows * columns * (inner + inner)


def test_a_ring_over_machines_is_as_fast_as_their_network(recipe_of):
    within, across = (only(recipe_of(), ranks, GPUS["h100"]).time for ranks in (8, 16))
    assert within.sent / within.communication == pytest.approx(450e9)
    assert across.sent / across.communication == pytest.approx(400e9)


@pytest.mark.parametrize(("name", "millions"), [("70b", 70_553.706496), ("8b", 8_030.261248), ("1b", 1_235.8144)])
def test_the_examples_configurations_have_the_published_sizes(name, millions):
    from pathlib import Path

    from kdalign.models.architecture import describe
    from kdalign.models.checkpoint_files import find_checkpoint

    folder = Path(__file__).parents[2] / f"examples/configs/llama-{name}"
    assert describe(find_checkpoint(str(folder), weights=False).config).parameters == round(millions * 1e6)


def test_the_command_shows_tables_and_json(recipe_of, kdalign, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "it.yaml"
    file.write_text(yaml.safe_dump(recipe_of().model_dump(mode="json")))
    words = ("profile", "--plan", file, "--ranks", "2", "--device-name", "H100", "--efficiency", "0.3")
    status, out, _ = kdalign(*words)
    assert status == 0
    assert "GB of each of 2 ranks" in out
    assert "fits in the memory of h100" in out
    assert "computed, not run" in out
    more = ("--json", "--set", "train.sharding=fsdp2", "--student", "layers=1", "--memory-gb", "0.5")
    status, out, _ = kdalign(*words, *more)
    [found] = json.loads(out)
    assert (status, found["fits"]) == (0, False), "a plan is no gate"
    assert (found["sharding"], found["student"][0], found["efficiency"]) == ("fsdp2", "layers=1", 0.3)
    assert found["memory"]["phases"]["training"]["student"] == 4 * (OUTSIDE + LAYER) // 2
    assert found["hours"] > 0
    assert not (tmp_path / "runs").exists()


def test_what_is_not_accepted_is_refused_in_one_line(recipe_of, kdalign, tmp_path):
    file = tmp_path / "it.yaml"
    file.write_text(yaml.safe_dump(recipe_of().model_dump(mode="json")))
    cases = {
        ("--plan", file, "--device-name", "h10"): "did you mean 'h100'",
        ("--plan", file, "--peak-tflops", "10"): "needs both --peak-tflops and --memory-gb",
        ("--plan", file, "--efficiency", "40"): "--efficiency 40: accepted is a number above 0, at most 1",
        ("--plan", file, "--seq-len", "16"): "--plan takes models, lengths and precision from the recipe",
        ("--plan", file, "--teacher", "nowhere/at/all"): "does not exist",
        ("--plan", file, "--device-name", "h100", "--set", "train.precision=fp32"): "give --peak-tflops of its float32",
        ("--ranks", "2"): "are for --plan RECIPE",
        (): "name a model, or a recipe by --plan",
    }
    for words, said in cases.items():
        status, out, err = kdalign("profile", *words)
        assert (status, out) == (2, ""), words
        assert said in one_line(err), words


def test_a_device_that_is_given_by_figures_needs_its_peak_and_memory():
    given = hardware.describe_hardware(None, 100, 24, None, 5)
    assert (given.flops, given.memory, given.bandwidth, given.link) == (1e14, 24 * 10**9, None, 5e9)
    faster = hardware.describe_hardware("a100", teraflops=400)
    assert (faster.flops, faster.memory) == (4e14, GPUS["a100"].memory)
    assert hardware.describe_hardware() is None
    with pytest.raises(UsageError, match="needs both --peak-tflops and --memory-gb"):
        hardware.describe_hardware(link=5)


def test_a_step_takes_as_long_as_the_rank_with_the_most_rows(recipe_of):
    batch = recipe_of().train.batch_size
    alone, uneven, idle = (only(recipe_of(), ranks, DEVICE) for ranks in (batch, batch - 1, 10 * batch))
    assert alone.time.operations == idle.time.operations
    assert uneven.time.operations == 2 * alone.time.operations
    assert any(f"of {10 * batch} ranks, {9 * batch} have none" in note for note in idle.notes)
