"""`--on-policy` on the command line: refusals before anything is written, and runs whose alarms are announced."""

import json
import shutil

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.models.capture import enable_capture
from kdalign.models.sampling import Sampling, sample_continuations, uniform_numbers
from support.family_setting import model, tokenizer
from support.ranks import each_step, run
from support.tiny import SHARED, one_line, sentences


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a tiny GPT-2, a T5, a BERT that predicts masked words, and texts."""
    folder = tmp_path_factory.mktemp("made")
    for kind, family in {"gpt2": "causal", "t5": "seq2seq", "bert": "masked"}.items():
        model(kind).save_pretrained(folder / kind)
        tokenizer(family).save_pretrained(folder / kind)
    model("gpt2", seed=1).save_pretrained(folder / "other")
    train_tokenizer(sentences(200, 8)[0], 260, "causal", 64).save_pretrained(folder / "other")
    texts = sentences(96, 3)[0]
    table = pd.DataFrame({"text": texts, "en": texts, "de": texts[::-1]})
    (folder / "data").mkdir()
    table.to_parquet(folder / "data" / "train.parquet")
    table[:16].to_parquet(folder / "data" / "validation.parquet")
    return folder


def words(made, *more, kind="gpt2", task="lm:text"):
    options = ("--max-steps", 4, "--batch-size", 4, "--max-length", 32, "--precision", "fp32", "--device", "cpu")
    teacher = kind if kind == "none" else made / kind
    return (
        "distill", "--teacher", teacher, "--student", "layers=2", "--task", task, "--data", made / "data",
        *options, "--set", "on_policy.max_new_tokens=12", "--allow", "weak-teacher", "--out", "run", *more,
    )  # fmt: skip


BAD = [
    (("--on-policy", "1.5"), {}, "on_policy.share=1.5: must be less than or equal to 1"),
    (("--on-policy", "-0.1"), {}, "on_policy.share=-0.1: must be greater than or equal to 0"),
    (("--on-policy", "0.5", "--set", "on_policy.temperature=0"), {}, "on_policy.temperature=0: must be greater than 0"),
    (("--on-policy", "0.5", "--set", "on_policy.top_k=3"), {}, "unknown recipe key 'on_policy.top_k'; did you mean"),
    (("--on-policy", "0.5", "--student", "new:gpt2"), {"kind": "none"}, "--on-policy trains on what a teacher"),
    (("--on-policy", "0.5", "--alpha", "0"), {}, "the weight of the teacher's answers, is 0: give --alpha a weight"),
    (("--on-policy", "0.5", "--set", "on_policy.max_new_tokens=65"), {}, "is more than the 64 positions of the gpt2"),
    (
        ("--on-policy", "0.5", "--cache", "kept"),
        {},
        "compares texts that the student has yet to write, which a cache cannot hold: leave out --cache or",
    ),
    (("--on-policy", "0.5"), {"kind": "bert"}, "continues texts from left to right, which a masked model does not"),
]


@pytest.mark.parametrize(("more", "setting", "said"), BAD)
def test_what_cannot_be_on_policy_is_refused_in_one_line(kdalign, made, tmp_path, more, setting, said):
    code, _, err = kdalign(*words(made, *more, **setting), "--dry-run")
    assert code == 2
    assert said in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_classifier_writes_no_texts(kdalign, teacher, data, tmp_path):
    task = ("--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data)
    code, _, err = kdalign("distill", *task, "--on-policy", 0.5, "--out", "run")
    assert code == 2
    assert "--on-policy is for models that write texts: not for task 'sst2'" in one_line(err)


def test_a_teacher_of_another_tokenizer_is_refused_with_the_reason(kdalign, made, tmp_path):
    code, _, err = kdalign(*words(made, "--student", made / "other", "--on-policy", 0.5), "--dry-run")
    assert code == 2
    assert "a text that the student writes may be cut into other tokens" in one_line(err)


def test_a_dry_run_says_what_is_on_policy_and_what_has_no_effect(kdalign, made):
    code, out, err = kdalign(*words(made, "--on-policy", 0.5, "--set", "on_policy.after=0.25"), "--dry-run")
    assert code == 0, err
    assert "50 % of the steps after the first 25 % on the student's own texts" in " ".join(out.split())
    code, out, err = kdalign(*words(made), "--dry-run")
    assert code == 0, err
    assert "on_policy is for steps on the student's own texts, and on_policy.share is 0" in " ".join(out.split())


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A model of 260,000 parameters that tells stories, and sentences of its own as data."""
    if not (SHARED / "models" / "stories260K").is_dir():
        pytest.skip("real checkpoints and data are not beside this checkout (../shared)")
    folder = tmp_path_factory.mktemp("stories")
    shutil.copytree(SHARED / "models" / "stories260K", folder / "model")
    net = enable_capture(AutoModelForCausalLM.from_pretrained(folder / "model"))
    reads = AutoTokenizer.from_pretrained(folder / "model")
    sampling = Sampling(150, 0.8, 1.0, frozenset([2]), 512, 512)
    draws = [uniform_numbers(f"story {number}", 150) for number in range(24)]
    told = reads.batch_decode(sample_continuations(net, [[1]] * 24, draws, sampling), skip_special_tokens=True)
    told = [story.replace("\n", " ") for story in told]
    sentences_of = [f"{line.strip()}." for story in told for line in story.split(".")[:-1] if line.strip()]
    for name, texts in {"stories": told, "sentences": sentences_of}.items():
        (folder / name).mkdir()
        (folder / name / "train.txt").write_text("\n".join(texts[4:]))
        (folder / name / "validation.txt").write_text("\n".join(texts[:4]))
    return folder


def tell(stories, *more, data="stories", steps=20):
    """A student that begins as its teacher, whose own texts are half of its steps."""
    options = ("--max-steps", steps, "--batch-size", 4, "--max-length", 64, "--precision", "fp32", "--device", "cpu")
    settings = (
        "--set",
        "on_policy.max_new_tokens=40",
        "--set",
        "train.samples=0",
        "--set",
        "on_policy.prompt_tokens=6",
    )
    return (
        "distill", "--teacher", stories / "model", "--student", stories / "model", "--task", "lm", "--out", "run",
        "--data", stories / data, "--on-policy", 0.5, *options, *settings, *more,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "alarmed"), [("1e-3", False), ("1e-2", True)])
def test_a_learning_rate_ten_times_too_high_is_announced_and_a_fitting_one_is_not(kdalign, stories, lr, alarmed):
    code, _, err = kdalign(*tell(stories, "--lr", lr))
    assert code == 0, err
    told = [line for line in err.splitlines() if line.startswith("alarm at step ")]
    assert bool(told) == alarmed, told
    if alarmed:
        assert int(told[0].split()[3].rstrip(":")) <= 50
        assert "the teacher gives the samples" in told[0]
        assert "lower --lr" in told[0]


@pytest.mark.slow
def test_a_student_of_other_end_tokens_is_refused_and_let_through_its_endless_texts_stop_the_run(
    kdalign, stories, tmp_path
):
    other = shutil.copytree(stories, tmp_path / "other")
    file = other / "model" / "generation_config.json"
    file.write_text(file.read_text().replace('"eos_token_id": 2', '"eos_token_id": 1'))
    code, _, err = kdalign(*tell(other, data="sentences"))
    assert code == 2
    assert "no training target contains the end token" in one_line(err), "before training"
    more = ("--allow", "no-end", "--set", "on_policy.patience=5")
    code, _, err = kdalign(*tell(other, *more, data="sentences", steps=50))
    assert code == 1
    (told,) = [line for line in err.splitlines() if line.startswith("alarm at step ")]
    assert "no sample ends within its 40 tokens" in told
    assert "check that the student's end tokens are those of the data" in told
    assert "the student's own texts collapse: 5 on-policy steps in a row with an alarm" in err.splitlines()[-1]
    assert "(on_policy.patience): endless 5" in err.splitlines()[-1]
    assert not (tmp_path / "run" / "record.json").exists()


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
            "--rdzv_endpoint", "localhost:0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), [("gpt2", "lm:text"), ("t5", "translation:en-de")])
def test_two_ranks_take_the_on_policy_steps_of_one_process(made, tmp_path, kind, task):
    one, two = tmp_path / "one", tmp_path / "two"
    for out, start in ((one, []), (two, TORCHRUN)):
        more = ("--on-policy", 0.5, "--micro-batch", 2, "--limit", 30, "--set", "train.dropout=0", "--out", out)
        done = run([*start, "-m", "kdalign", *map(str, words(made, *more, "--max-steps", 8, kind=kind, task=task))])
        assert done.returncode == 0, done.stderr
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-5)
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3, abs=1e-5)
    samples = [
        [json.loads(line).get("on_policy") for line in (out / "history.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    told = [[each for each in side if each is not None] for side in samples]
    assert len(told[0]) == len(told[1]) == 4
    for ours, theirs in zip(*told, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--select", "best", "--set", "train.eval_every=2"),
        ("--set", "objective.align_first=0.5"),
        ("--set", "objective.balance=size"),
        ("--set", "objective.schedule={temperature: {to: 2}, alpha: {to: 0.1}}", "--divergence", "js"),
        ("--precision", "bf16", "--set", "on_policy.divergence=reverse", "--set", "on_policy.top_p=0.9"),
        ("--preset", "kd", "--set", "on_policy.after=0.5"),
    ],
    ids=["select", "stages", "balance", "schedule", "bf16", "after soft"],
)
def test_on_policy_steps_go_with_other_settings(kdalign, made, tmp_path, more):
    code, _, err = kdalign(*words(made, "--on-policy", 0.5, "--max-steps", 8, *more))
    assert code == 0, err
    steps = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    own = [event for event in steps if event["kind"] == "step" and "on_policy" in event]
    assert len(own) == (2 if "on_policy.after=0.5" in more else 4)
    assert all("hard" not in event["parts"] for event in own)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["training"]["sampled_tokens"] > 0
    assert record["training"]["sampled_per_second"] > 0
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "On-policy: 50 % of the steps" in card
