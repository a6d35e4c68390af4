"""A teacher behind an API trains like the same teacher here; what a server cannot do is refused before training."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdalign.data.passages import split_passages
from kdalign.distillation import pipeline, served_source, teacher_source
from kdalign.models.token_targets import TopTokens, top_tokens
from kdalign.teachers.computed import ComputedTeacher
from support.answering_server import answering_server
from support.covering import first_only
from support.logprob_server import logprob_server
from support.served_setting import losses, save_other_student, save_pair
from support.tiny import one_line, sentences

TRAINING = ("--max-steps", 4, "--batch-size", 4, "--max-length", 32, "--precision", "fp32", "--lr", "1e-3")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("served"))


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def serve(pair):
    model = AutoModelForCausalLM.from_pretrained(pair / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(pair / "teacher")
    return lambda **habits: logprob_server(model, tokenizer, **habits)


def words(pair, server, *more, out="served"):
    served = ("--teacher", "openai:tiny", "--base-url", server.url, "--top-logprobs", 8)
    rest = ("--student", pair / "student", "--task", "lm", "--data", pair / "texts", *TRAINING, "--out", out)
    return ("distill", *served, *rest, *more)


class Reduced(ComputedTeacher):
    """The teacher that is loaded, reduced to its 8 likeliest tokens and the rest."""

    def __call__(self, batch, wanted):
        signals = super().__call__(batch, wanted)
        everywhere = batch.real >= 0
        flat = top_tokens(signals.tokens.select(everywhere), 8, (1.0,), 512)
        shape = batch.real.shape
        logs = {1.0: flat.logs[1.0].view(*shape, -1)}
        signals.tokens = TopTokens(flat.entries.view(*shape, -1), logs, flat.vocabulary)
        return signals


@pytest.fixture
def local(kdalign, pair, monkeypatch):
    """The losses of the loaded teacher, reduced."""
    monkeypatch.setattr(teacher_source, "ComputedTeacher", Reduced)
    rest = ("--student", pair / "student", "--task", "lm", "--data", pair / "texts", *TRAINING, "--out", "local")
    status, _, err = kdalign("distill", "--teacher", pair / "teacher", "--beta", 0, *rest)
    assert status == 0, err
    return losses(Path("local"))


@pytest.mark.parametrize("habits", first_only([{"protocols": ("prompt_logprobs",)}, {"protocols": ("echo",)}]))
def test_a_served_teacher_gives_the_losses_of_the_same_teacher_here(kdalign, tmp_path, pair, serve, local, habits):
    with serve(**habits) as server:
        status, _, err = kdalign(*words(pair, server))
        assert status == 0, err
    assert losses(tmp_path / "served") == pytest.approx(local, abs=1e-5)
    record = json.loads((tmp_path / "served" / "record.json").read_text())
    facts = record["training"]["served_teacher"]
    assert (facts["model"], facts["url"], facts["answered_by"], facts["top_k"]) == ("tiny", server.url, ["tiny-1"], 8)
    assert 0 < facts["rest"] < 1
    theirs = json.loads((tmp_path / "local" / "record.json").read_text())["scores"]["validation"]
    ours = record["scores"]["validation"]
    assert [score["metric"] for score in ours["teacher"]] == [score["metric"] for score in theirs["teacher"]]
    values = [[score["value"] for score in each["teacher"]] for each in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert ours["agreement"]["value"] == theirs["agreement"]["value"]
    assert f"distilled from `openai:tiny at {server.url}`" in (tmp_path / "served/student/README.md").read_text()


def test_positions_at_which_a_server_returns_nothing_are_left_out(kdalign, tmp_path, pair, serve, monkeypatch):
    marked = []

    def mark(opened, source):
        marked.append(served_source.with_returned(opened, source))
        return marked[-1]

    monkeypatch.setattr(pipeline, "with_returned", mark)
    with serve(protocols=("prompt_logprobs",), silent=9) as server:
        status, _, err = kdalign(*words(pair, server))
        assert status == 0, err
    train = marked[0].texts.train
    long = [(row, passage) for row, passage in split_passages(train) if len(passage.ids) > 8]
    assert [train.columns["returned"][row][passage.start : passage.start + 9] for row, passage in long] == [
        [1] * 8 + [0] for _ in long
    ]
    assert sum(each.count(0) for each in train.columns["returned"]) >= len(long) > 0
    assert f"; {len({passage.whole for _, passage in long})} more are left out, where the server says nothing" in err


OWN_TEXTS = ("--on-policy", 0.5, "--set", "on_policy.max_new_tokens=8", "--set", "on_policy.divergence=reverse")


@pytest.mark.slow
def test_a_served_teacher_is_asked_about_the_students_own_texts_once(kdalign, tmp_path, pair, serve, monkeypatch):
    with serve(protocols=("prompt_logprobs",)) as server:
        for out in ("served", "again"):
            status, _, err = kdalign(*words(pair, server, *OWN_TEXTS, out=out))
            assert status == 0, err
    monkeypatch.setattr(teacher_source, "ComputedTeacher", Reduced)
    rest = ("--student", pair / "student", "--task", "lm", "--data", pair / "texts", *TRAINING, "--out", "local")
    status, _, err = kdalign("distill", "--teacher", pair / "teacher", "--beta", 0, *OWN_TEXTS, *rest)
    assert status == 0, err
    assert losses(tmp_path / "served") == pytest.approx(losses(tmp_path / "local"), abs=1e-5)
    assert losses(tmp_path / "served") == losses(tmp_path / "again")
    steps = [json.loads(line) for line in (tmp_path / "served" / "history.jsonl").read_text().splitlines()]
    own = [event["on_policy"] for event in steps if "on_policy" in event]
    assert len(own) == 2
    assert all(0 <= each["outside"] <= 1 and each["likelihood"] < 0 for each in own)
    requests = [
        json.loads((tmp_path / out / "record.json").read_text())["training"]["served_teacher"]["requests"]
        for out in ("served", "again")
    ]
    assert requests[0] > requests[1] == 0


@pytest.mark.slow
def test_a_server_that_reads_prompts_as_text_does_not_read_the_students_own(kdalign, tmp_path, pair, serve):
    with serve(protocols=("echo",), takes_ids=False) as server:
        status, _, err = kdalign(*words(pair, server, *OWN_TEXTS))
    assert status == 2
    assert "--on-policy: this server reads prompts as text" in one_line(err)
    assert not (tmp_path / "served").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["chat", pytest.param("translation:source-target", marks=pytest.mark.slow)])
def test_answers_are_learnt_from_a_server_as_from_the_same_teacher_here(
    kdalign, tmp_path, pair, serve, monkeypatch, task
):
    written = sentences(24, 77)[0]
    ends = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}{{ eos_token }}{% endfor %}"
    for name in ("teacher", "student"):
        shutil.copytree(pair / name, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(
            ends + "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    rows = {"source": written[:12], "target": written[12:]}
    rows["messages"] = [
        [{"role": "user", "content": source}, {"role": "assistant", "content": target}]
        for source, target in zip(rows["source"], rows["target"], strict=True)
    ]
    for split in ("train", "validation"):
        pd.DataFrame(rows).to_parquet(tmp_path / f"{split}.parquet")
    monkeypatch.setattr(teacher_source, "ComputedTeacher", Reduced)
    rest = ("--student", "student", "--task", task, "--data", ".", *TRAINING, "--max-length", 96)
    with serve() as server:
        served = ("--teacher", "openai:tiny", "--base-url", server.url, "--top-logprobs", 8)
        for words in ((*served, "--out", "served"), ("--teacher", "teacher", "--beta", 0, "--out", "local")):
            status, _, err = kdalign("distill", *words, *rest)
            assert status == 0, err
    assert losses(tmp_path / "served") == pytest.approx(losses(tmp_path / "local"), abs=1e-5)


@pytest.mark.slow
def test_arms_and_seeds_share_what_was_asked(kdalign, tmp_path, pair, serve):
    rest = ("--student", pair / "student", "--task", "lm", "--data", pair / "texts", "--max-steps", 2)
    with serve() as server:
        served = ("--teacher", "openai:tiny", "--base-url", server.url, "--top-logprobs", 8, "--max-length", 32)
        arms = ("--arms", "labels,soft", "--seeds", 2, "--batch-size", 4, "--set", "train.samples=0")
        status, out, err = kdalign("ablate", *served, *rest, *arms, "--out", "ablation")
        assert status == 0, err
        passages = {json.dumps(body["prompt"]) for body in server.habits.asked}
        assert len(server.habits.asked) <= len(passages) + 4  # one to find the form, and three asked twice
    assert "teacher openai:tiny" in out
    assert "retained" in out


@pytest.mark.slow
def test_a_step_split_otherwise_and_a_run_killed_while_it_trains_give_the_same_losses(
    kdalign, stopped, tmp_path, pair, serve
):
    with serve() as server:
        assert kdalign(*words(pair, server))[0] == 0
        assert kdalign(*words(pair, server, "--micro-batch", 1, out="split"))[0] == 0
        saving = ("--set", "train.checkpoint_every=2")
        assert stopped(*words(pair, server, *saving, out="killed"))[0] == 9
        asked = len(server.habits.asked)
    status, _, err = kdalign(*words(pair, server, *saving, "--resume", out="killed"))  # nobody answers any more
    assert status == 0, err
    assert len(server.habits.asked) == asked
    whole = losses(tmp_path / "served")
    assert losses(tmp_path / "split") == pytest.approx(whole, abs=1e-6)
    assert losses(tmp_path / "killed") == whole


@pytest.mark.slow
def test_a_server_with_another_tokenizer_is_compared_where_both_divide_the_text(kdalign, tmp_path, pair, serve):
    other = save_other_student(tmp_path / "other")
    with serve(numbers=False) as server:
        given = [other if word == pair / "student" else word for word in words(pair, server)]
        status, _, err = kdalign(*given)
        assert status == 0, err
    assert "by another tokenizer" in err
    assert "more are left out, where the server says nothing or divides the text elsewhere" in err
    facts = json.loads((tmp_path / "served" / "record.json").read_text())["training"]["served_teacher"]
    assert "distance between the others" in err
    assert "distance between the others" in facts["unshared_tokens"]
    assert 0.3 < facts["returned"] / facts["positions"] < 1
    assert 0 < facts["unmapped"] < facts["rest"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("habits", "said"),
    [
        ({"takes_ids": False}, "echo of prompts as text"),
        ({"protocols": ("echo",), "numbers": False}, "echo of prompts as token numbers"),
    ],
)
def test_tokens_that_are_named_by_text_give_the_same_up_to_those_without_one(
    kdalign, tmp_path, pair, serve, local, habits, said
):
    with serve(**habits) as server:
        status, _, err = kdalign(*words(pair, server))
        assert status == 0, err
    assert said in err
    assert losses(tmp_path / "served") == pytest.approx(local, abs=2e-3)


@pytest.mark.slow
def test_a_server_that_begins_each_text_itself_says_nothing_of_what_begins_in_the_middle(kdalign, pair, serve):
    with serve(takes_ids=False, start=1, hides_start=True) as server:
        status, _, err = kdalign(*words(pair, server))
        assert status == 0, err
    assert "echo of prompts as text, begun by the server" in err
    assert "more are left out, where the server says nothing or divides the text elsewhere" in err


@pytest.mark.slow
def test_a_stopped_reading_is_paid_for_once_and_gives_the_same_losses(kdalign, tmp_path, pair, serve, local):
    with serve(dies_after=20) as server:
        status, _, err = kdalign(*words(pair, server, "--set", "served.retries=0"))
        assert (status, "answers are kept" in err.splitlines()[-1]) == (1, True), err
        server.habits.dies_after = None
        status, _, err = kdalign(*words(pair, server, "--resume", "--set", "served.retries=0"))
        assert status == 0, err
        first = len(server.habits.asked)
        assert losses(tmp_path / "served") == pytest.approx(local, abs=1e-5)
        status, _, err = kdalign(*words(pair, server, "--seed", 1, out="second"))
        assert (status, "the server is not asked" in err, len(server.habits.asked)) == (0, True, first), err


@pytest.mark.slow
def test_a_spent_budget_says_what_is_kept_and_a_larger_one_goes_on(kdalign, pair, serve):
    with serve() as server:
        status, _, err = kdalign(*words(pair, server, "--max-requests", 12))
        assert (status, "run the same command with a larger budget to resume" in err) == (1, True), err
        status, _, err = kdalign(*words(pair, server, "--max-requests", 90, "--resume"))
        assert status == 0, err


@pytest.mark.parametrize(
    ("habits", "more", "said"),
    [
        ({"protocols": ()}, (), "returns no log-probabilities of a prompt"),
        ({"protocols": ()}, (), "`kdalign generate --teacher openai:tiny --base-url"),
        ({"late": 1}, (), "one token late"),
        ({"noise": 0.05}, (), "two answers differ by"),
        ({"temperature": 100.0}, (), "chance among"),
        ({"context": 20}, (), "are longer than the 20 tokens that the server reads"),
        ({"temperature": 2.0}, ("--check-teacher", "teacher"), "another model, temperature or template"),
    ],
)
def test_what_a_server_does_otherwise_than_training_is_refused_before_anything_is_written(
    kdalign, tmp_path, pair, serve, habits, more, said
):
    more = [pair / "teacher" if word == "teacher" else word for word in more]
    with serve(**habits) as server:
        status, _, err = kdalign(*words(pair, server, *more))
    assert (status, said in err.splitlines()[-1]) == (2, True), err
    assert not (tmp_path / "served").exists()


@pytest.mark.slow
def test_the_numbers_of_a_local_copy_are_compared(kdalign, tmp_path, pair, serve):
    with serve() as server:
        status, _, err = kdalign(*words(pair, server, "--check-teacher", pair / "teacher"))
        assert status == 0, err
    record = json.loads((tmp_path / "served" / "record.json").read_text())
    assert record["training"]["served_teacher"]["local_nats"] < 1e-5


def test_a_wrong_name_is_answered_with_the_nearest(kdalign, pair, serve):
    with serve() as server:
        given = [word if word != "openai:tiny" else "openai:tinny" for word in words(pair, server)]
        status, _, err = kdalign(*given)
    assert (status, "it has no model 'tinny'; did you mean 'tiny'?" in err) == (2, True), err


def test_a_url_without_its_path_is_named_as_the_cause(kdalign, pair):
    with answering_server(lambda _: ("", "stop")) as server:
        server.url = server.url.removesuffix("/v1")
        status, _, err = kdalign(*words(pair, server))
    assert (status, f"no OpenAI-compatible API at {server.url} " in err, "mostly with /v1" in err) == (2, True, True), (
        err
    )
    assert "kdalign generate" not in err


def test_a_local_copy_that_is_not_there_is_refused_by_a_dry_run(kdalign, pair, serve):
    with serve() as server:
        status, _, err = kdalign(*words(pair, server, "--check-teacher", "./nowhere", "--dry-run"))
        assert not server.habits.asked
    assert (status, "nowhere" in one_line(err)) == (2, True), err


def test_a_dry_run_sends_nothing_and_says_what_would_be_asked(kdalign, tmp_path, pair, serve):
    with serve() as server:
        status, out, err = kdalign(*words(pair, server, "--dry-run"))
        assert (status, server.habits.asked) == (0, []), err
    assert "openai:tiny at http:" in out
    assert "requests at most: 35 passages of 14 training rows and" in " ".join(out.split())
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "lm"], "give its address, --base-url"),
        (
            ["--base-url", "http://127.0.0.1:9/v1", "--task", "lm", "--cache", "auto"],
            "answers are kept already: leave out",
        ),
        (["--base-url", "http://127.0.0.1:9/v1", "--task", "lm", "--beta", "1"], "objective.beta compares layers"),
        (
            ["--base-url", "http://127.0.0.1:9/v1", "--task", "lm", "--temperature", "2"],
            "term 'soft' is at temperature",
        ),
        (["--base-url", "http://127.0.0.1:9/v1", "--task", "sst2"], "cannot teach task 'sst2'"),
        (["--base-url", "http://me:pw@127.0.0.1:9/v1", "--task", "lm"], "takes no name or password"),
        (["--base-url", "http://127.0.0.1:9/v1", "--task", "lm", "--student", "layers=1"], "cut out of the teacher's"),
    ],
)
def test_what_no_server_can_teach_is_one_line(kdalign, tmp_path, pair, data, words, said):
    folder = data if "sst2" in words else pair / "texts"
    student = () if "--student" in words else ("--student", pair / "student")
    given = ["--teacher", "openai:tiny", *words, *student, "--data", folder, "--max-length", 32, "--out", "served"]
    status, _, err = kdalign("distill", *given)
    assert (status, said in one_line(err)) == (2, True), err
    assert not (tmp_path / "served").exists()


def test_an_ablation_has_no_arms_that_compare_layers_with_a_served_teacher(kdalign, pair):
    given = ("--teacher", "openai:tiny", "--base-url", "http://127.0.0.1:9/v1", "--student", pair / "student")
    rest = ("--task", "lm", "--data", pair / "texts", "--max-length", 32, "--out", "ablation", "--dry-run", "--json")
    status, out, err = kdalign("ablate", *given, *rest)
    assert (status, {trial["arm"] for trial in json.loads(out)}) == (0, {"labels", "soft"}), err
    status, _, err = kdalign("ablate", *given, *rest, "--arms", "soft,joint")
    assert (status, "arm 'joint' compares layers" in one_line(err)) == (2, True), err


def test_a_server_that_is_not_there_is_named(kdalign, tmp_path, pair):
    gone = type("Gone", (), {"url": "http://127.0.0.1:9/v1"})
    status, _, err = kdalign(*words(pair, gone, "--set", "served.retries=0"))
    assert (status, "cannot reach the server at http://127.0.0.1:9/v1" in one_line(err)) == (1, True), err
