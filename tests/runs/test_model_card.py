"""The student's model card: what it says is the record's, its metadata is the hub's, and its code runs."""

import json
import re
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from kdalign.distillation.pipeline import distill
from kdalign.files import sha256
from kdalign.recipe import build_recipe, load_recipe
from kdalign.runs.model_card import model_card
from kdalign.runs.record import read_record
from support.tiny import one_line, save_model, sentences

COMMIT = "5503434ddd753f426f4b38109466949a1217c2bb"


def trained(out, **flags):
    """A run of two steps."""
    common = {"train.max_steps": 2, "train.batch_size": 8, "train.device": "cpu", "train.precision": "fp32"}
    named = {key.replace("__", "."): value for key, value in flags.items()}
    distill(build_recipe(None, {**common, **named, "out": str(out)}))
    return out


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, teacher, data):
    return trained(
        tmp_path_factory.mktemp("card") / "half", teacher=str(teacher), student="layers=2", data__task="sst2",
        data__folder=str(data),
    )  # fmt: skip


def read(folder):
    return ModelCard.load(folder / "student" / "README.md")


def changed(folder, **parts):
    """The card of a run with parts of its record replaced; of ``data`` and ``recipe``, some keys."""
    record = read_record(folder)
    parts = {
        key: {**getattr(record, key), **value} if isinstance(value, dict) else value for key, value in parts.items()
    }
    return ModelCard(model_card(replace(record, **parts), folder))


def test_a_run_writes_its_students_card_and_hashes_it(kdalign, classifier, tmp_path):
    file = classifier / "student" / "README.md"
    assert read_record(classifier).files["student/README.md"] == sha256(file)
    status, out, _ = kdalign("card", classifier)
    assert (status, out) == (0, file.read_text()), "an older run gets the very same"
    status, out, err = kdalign("card", classifier, "--out", "deep/card.md")
    assert (status, out) == (0, "")
    assert "written: deep/card.md" in err
    assert (tmp_path / "deep" / "card.md").read_text() == file.read_text()


def test_the_metadata_is_the_hubs_and_holds_every_score(classifier):
    card = read(classifier)
    tree = card.data.to_dict()
    assert (tree["library_name"], tree["pipeline_tag"]) == ("transformers", "text-classification")
    assert tree["tags"] == ["kdalign", "knowledge-distillation"]
    assert not {"license", "language", "base_model", "datasets"} & set(tree), "nobody said so"
    [score] = read_record(classifier).scores["validation"]["student"]
    name, [result] = model_index_to_eval_results(tree["model-index"])
    assert (name, result.task_type, result.metric_type) == ("half", "text-classification", "accuracy")
    assert result.metric_value == score["value"]
    assert result.metric_name == "accuracy (%)"
    assert (result.dataset_type, result.dataset_split) == ("unknown", "validation")
    assert eval_results_to_model_index(name, [result]) == tree["model-index"]
    assert str(ModelCard(str(card))) == (classifier / "student" / "README.md").read_text(), "as the hub writes it"


def test_what_is_known_of_teacher_and_data_on_the_hub_is_said(classifier):
    teacher = replace(read_record(classifier).teacher, revision=COMMIT)
    recipe = read_record(classifier).recipe
    recipe = {"teacher": "google-bert/bert-base-uncased", "data": {**recipe["data"], "folder": None}}
    tree = changed(classifier, teacher=teacher, recipe=recipe, data={"source": "nyu-mll/glue (sst2)"}).data.to_dict()
    assert tree["base_model"] == ["google-bert/bert-base-uncased"]
    assert tree["datasets"] == ["nyu-mll/glue"]
    assert tree["language"] == ["en"]
    dataset = tree["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"name": "nyu-mll/glue (sst2)", "type": "nyu-mll/glue", "config": "sst2", "split": "validation"}
    assert "license" not in tree


@pytest.mark.parametrize(
    ("metric", "mark", "hub"),
    [
        ("matthews", "", "matthews_correlation"),
        ("pearson", "", "pearsonr"),
        ("spearman", "", "spearmanr"),
        ("macro_f1", "", "f1"),
        ("word_ppl", "", "perplexity"),
        ("ppl", "pseudo", "ppl"),
        ("masked_ppl", "", "masked_ppl"),
        ("rougeL", "", "rouge"),
        ("bleu", "", "bleu"),
        ("cer", "", "cer"),
        ("wer", "", "wer"),
    ],
)
def test_metrics_have_the_hubs_names_and_what_is_no_perplexity_is_not_called_one(classifier, metric, mark, hub):
    scores = json.loads(json.dumps(read_record(classifier).scores))
    scores["validation"]["student"][0] |= {"metric": metric, "mark": mark}
    tree = changed(classifier, scores=scores).data.to_dict()
    assert tree["model-index"][0]["results"][0]["metrics"][0]["type"] == hub
    assert tree["metrics"] == [hub]


def test_the_text_says_the_records_numbers(classifier):
    record, text = read_record(classifier), read(classifier).text
    [ours], [theirs] = record.scores["validation"]["student"], record.scores["validation"]["teacher"]
    agreement = record.scores["validation"]["agreement"]

    def shown(score):
        return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"

    retained = f"{100 * ours['value'] / theirs['value']:.1f}"
    assert f"| accuracy (%) | {shown(ours)} | {shown(theirs)} | {retained} |" in text
    assert f"| agreement with the teacher (%) | {shown(agreement)} |" in text
    assert f"{record.student.parameters / 1e6:,.2f} M" in text
    assert "2 steps of 8 examples, 16 examples" in text
    assert "0.3 × cross-entropy with the labels + 0.7 × divergence from the teacher's answers" in text
    assert "student:teacher encoder 0:1 1:3" in text
    for facts in (record.data["train"], record.data["reported"]["validation"]):
        assert f"{facts['n']:,} | " in text
        assert f"`{facts['fingerprint']}`" in text
    assert "One seed (0)" in text


def test_the_recipe_in_the_card_is_the_runs(classifier, tmp_path):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", read(classifier).text, re.S)
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(classifier / "recipe.yaml")


def test_what_was_cut_left_out_undefined_or_let_through_is_a_limit(classifier):
    data = json.loads(json.dumps(read_record(classifier).data))
    data["train"]["truncated"] = 7
    data["checks"]["memory"] = "more than there is"
    scores = json.loads(json.dumps(read_record(classifier).scores))
    scores["validation"]["student"] = [
        {**scores["validation"]["student"][0], "metric": name, "value": value, "low": None, "high": None}
        for name, value in (("pearson", None), ("accuracy", 50.0))
    ]
    recipe = read_record(classifier).recipe
    recipe = {"allow": ["memory"], "data": {**recipe["data"], "limit": 1000}}
    card = changed(classifier, data=data, scores=scores, recipe=recipe)
    for said in (
        "7 of 256 training texts were cut to 128 tokens",
        "at most 1,000 examples",
        "pearson on `validation` is undefined",
        "accuracy on `validation` has no interval",
        "allowed: memory, more than there is",
    ):
        assert said in card.text, said
    metrics = card.data.to_dict()["model-index"][0]["results"][0]["metrics"]
    assert [metric["type"] for metric in metrics] == ["accuracy"], "what is undefined is no result"


def said_of(folder, *sets, training=None, **data):
    """The card of a run whose recipe and record say more."""
    record = read_record(folder)
    recipe = build_recipe(None, record.recipe, sets).model_dump(mode="json")
    more = {"training": training} if training else {}
    return changed(folder, recipe=recipe, data=data, **more).text


def test_an_ordinary_run_says_nothing_of_what_it_has_not(classifier):
    text = read(classifier).text.partition("## Reproduce")[0]
    for word in ("Preset", "Scheduled", "Balance", "Not trained", "weights of layers", "at a time", "New texts", "→"):
        assert word not in text, word
    assert said_of(classifier, "preset=feature-alignment").partition("## Reproduce")[0] == text


def test_parts_of_a_run_are_said_one_after_the_other(classifier):
    more = ("objective.align_first=0.7", "objective.masked_lm=0.5", "objective.terms={dist: 2}")
    text = said_of(classifier, *more)
    masked = "0.5 × cross-entropy with masked tokens of the texts, by a head that is not exported"
    assert (
        "- Objective of the first 70 % of the steps, which align layers: 1 × cosine between hidden states + 1 × "
        f"squared distance between hidden states + 1 × squared distance between attention maps + {masked}\n"
        "- Objective of the steps after them, which learn answers: 0.3 × cross-entropy with the labels + 0.7 × "
        "divergence from the teacher's answers + 2 × dist; temperature 2\n"
    ) in text
    falls = said_of(classifier, *more, "objective.schedule.alpha.to=0", "objective.schedule.beta={to: 0, until: 0.7}")
    assert "(1 → 0) × cosine between hidden states" in falls
    assert "(0.21 → 0) × divergence from the teacher's answers" in falls, "what is left of it after 70 % of the steps"


def test_what_is_scheduled_is_said_with_both_ends_and_a_weight_that_rises_from_0(classifier):
    text = said_of(
        classifier, "objective.schedule.alpha={to: 0, from: 0.2, until: 0.6}", "objective.schedule.temperature.to=1",
        "objective.beta=0", "objective.schedule.beta={to: 2, shape: cosine, until: 0.5}", "objective.gamma=0",
    )  # fmt: skip
    assert (
        "0.3 × cross-entropy with the labels + (0.7 → 0) × divergence from the teacher's answers + (0 → 2) × cosine "
        "between hidden states + 1 × squared distance between attention maps; temperature 2 → 1\n"
    ) in text
    for line in (
        "the weight of divergence from the teacher's answers 0.7 to 0, linearly from 20 % to 60 % of the steps",
        "temperature 2 to 1, linearly over all steps",
        "the weight of cosine between hidden states 0 to 2, along a cosine over the first 50 % of the steps",
    ):
        assert f"- Scheduled: {line}\n" in text


def test_how_terms_and_layers_weigh_and_what_is_frozen_is_said(classifier):
    text = said_of(
        classifier, "preset=kd", "objective.balance=size", "align.weights=ramp", "align.grow=0.5",
        "train.freeze='embeddings,layers=0'",
    )  # fmt: skip
    assert "- Preset: `kd`" in text
    assert "- Balance of terms: each weight is divided by its term's running size" in text
    assert (
        "student:teacher encoder 0:1 1:3; weights of layers: in proportion to a layer's rank from the bottom; one more "
        "at a time, from the bottom, over the first 50 % of the steps\n"
    ) in text
    assert "- Not trained: embeddings, layers=0\n" in text
    assert "; weights of layers: 1, 3\n" in said_of(classifier, "align.weights=[1, 3]")


def test_new_texts_and_texts_without_labels_are_said_and_not_counted_by_the_limit(classifier):
    more = {"n": 67146, "tokens": 900_000, "truncated": 0, "fingerprint": "abc", "source": "the rest of train"}
    sets = ("data.limit=200", "data.unlabelled=rest", "data.unlabelled_limit=67146")
    text = said_of(classifier, *sets, unlabelled=more)
    assert "| without labels | 67,146 | 900,000 |" in text
    assert "Text without labels: the rest of train." in text
    assert "Only part of the data with labels was used: at most 200 examples of a split." in text
    assert "Only part of the text without labels was used: 67,146 texts." in text
    assert "part of the text without labels" not in said_of(classifier, *sets, unlabelled={**more, "n": 9}), "all of it"
    new = {"model": "bert", "revision": COMMIT, "n": 512, "tokens": 4096}
    sets = ("data.limit=200", "data.augment={by: masked-lm, model: bert, copies: 2}")
    text = said_of(classifier, *sets, augmented=new)
    assert (
        "New texts: 512, 4,096 tokens; 2 new texts of each labelled row, 40% of the words replaced by bert; their "
        "labels are not known."
    ) in text
    assert "at most 200 examples of a split, without new texts made of them." in text
    text = said_of(classifier, "data.augment={by: cutoff}")
    assert "as they were read (cutoff): 10% of the tokens cut off, in 50% of an epoch's rows." in text


def test_a_task_that_was_learnt_with_others_says_its_own_steps_and_the_wholes(classifier):
    tasks = {name: {"examples": 9, "share": 1 / 3, "steps": 2} for name in ("cola", "sst2", "mrpc")}
    whole = {"steps": 6, "seconds": 50.2, "parameters": 9, "megabytes": 0.1, "tasks": tasks}
    whole["leaks"] = ["3 of the 8 texts of sst2, validation, are old"]
    whole["leaks"].append("3 of the 8 texts of cola, validation, are old")
    text = said_of(classifier, "multi_task.together=true", "out=runs/all of it/sst2", training={"multi_task": whole})
    assert (
        "- The body, shared with `cola`, `mrpc`: 6 steps of 8 examples in all, 50 seconds; each step took one task's "
        "batch\n- Of these, this task and its head had 2 steps: 16 examples, "
    ) in text
    assert "`kdalign distill --recipe 'runs/all of it/recipe.yaml'`" in text
    assert "--recipe recipe.yaml" not in text, "a task alone is refused"
    assert "training texts of the other tasks: 3 of the 8 texts of sst2, validation, are old" in text
    assert "texts of cola" not in text


def test_intervals_that_overlap_are_said_not_to_tell_the_models_apart(classifier):
    scores = json.loads(json.dumps(read_record(classifier).scores))
    scores["validation"]["student"][0] |= {"value": 80.0, "low": 75.0, "high": 85.0}
    for low, high, overlap in ((84.0, 90.0, True), (86.0, 90.0, False), (60.0, 74.0, False)):
        scores["validation"]["teacher"][0] |= {"value": (low + high) / 2, "low": low, "high": high}
        assert ("does not tell them apart" in changed(classifier, scores=scores).text) is overlap


@pytest.mark.parametrize(
    ("higher", "unit", "ours", "theirs", "tokens", "kept"),
    [
        (True, "%", 45.0, 90.0, False, "50.0"),
        (False, "", 8.0, 6.0, False, "75.0"),
        (False, "", 8.0, 6.0, True, "–"),
        (True, "%", 45.0, 0.0, False, "–"),
        (True, "%", 45.0, -2.0, False, "–"),
    ],
)
def test_what_is_retained_of_a_score(classifier, higher, unit, ours, theirs, tokens, kept):
    scores = json.loads(json.dumps(read_record(classifier).scores))
    for who, value in (("student", ours), ("teacher", theirs)):
        scores["validation"][who][0] |= {"value": value, "unit": unit, "higher_is_better": higher}
    card = changed(classifier, scores=scores, data={"tokenizers": {}} if tokens else {})
    row = next(line for line in card.text.splitlines() if line.startswith("| accuracy"))
    assert row.endswith(f"| {kept} |")


@pytest.mark.slow
def test_a_resumed_run_has_the_same_card_but_for_what_the_clock_says(teacher, data, tmp_path):
    out = trained(tmp_path / "a", teacher=str(teacher), student="layers=2", data__task="sst2", data__folder=str(data))
    before = (out / "student" / "README.md").read_text()
    (out / "record.json").unlink()  # as if killed while it exported
    distill(load_recipe(out / "recipe.yaml"), resume=True)
    after = (out / "student" / "README.md").read_text()
    differ = [one for one, other in zip(before.splitlines(), after.splitlines(), strict=True) if one != other]
    assert all(line.startswith("| latency") or " seconds" in line for line in differ), differ


def texts(path, n=24):
    path.mkdir()
    for number, split in enumerate(("train", "validation")):
        pd.DataFrame({"text": sentences(n, number)[0]}).to_parquet(path / f"{split}.parquet")
    return path


def pairs(path, **columns):
    path.mkdir()
    for split in ("train", "validation"):
        pd.DataFrame(columns).to_parquet(path / f"{split}.parquet")
    return path


def language_model(kind):
    def made(tmp_path, teacher):
        new = {"teacher": "none", "student": f"new:{kind},layers=2,width=32,heads=4,positions=64"}
        new["student"] = new["student"].replace(",positions=64", "") if kind in ("t5", "xlnet") else new["student"]
        new |= {"tokenizer": "train:300", "data__max_length": 32}
        if kind not in ("t5", "marian"):
            return {**new, "data__task": "lm", "data__folder": str(texts(tmp_path / "texts"))}
        both = pairs(tmp_path / "pairs", en=sentences(24, 0)[0], de=sentences(24, 1)[0])
        return {**new, "data__task": "translation:en-de", "data__folder": str(both)}

    return made


def two_texts(tmp_path, teacher):
    rows = {"sentence1": sentences(24, 0)[0], "sentence2": sentences(24, 1)[0], "label": [0, 1] * 12, "idx": range(24)}
    headless = {"data__task": "mrpc", "data__folder": str(pairs(tmp_path / "mrpc", **rows)), "finetune__epochs": 1}
    return {"teacher": str(save_model(tmp_path / "t", "bert")), "student": "layers=2", **headless}


def likeness(tmp_path, teacher):
    rows = {"sentence1": sentences(24, 0)[0], "sentence2": sentences(24, 1)[0], "label": [n / 5 for n in range(24)]}
    made = {"data__task": "stsb", "data__folder": str(pairs(tmp_path / "stsb", **rows))}
    return {"teacher": str(save_model(tmp_path / "t", "bert", num_labels=1)), "student": "layers=2", **made}


def embedding(tmp_path, teacher):
    place = texts(tmp_path / "texts")
    rows = {"sentence1": sentences(24, 0)[0], "sentence2": sentences(24, 1)[0], "score": [n / 5 for n in range(24)]}
    pd.DataFrame(rows).to_parquet(place / "validation.parquet")
    return {"teacher": str(teacher), "student": "layers=2", "data__task": "embedding", "data__folder": str(place)}


@pytest.mark.parametrize(
    ("made", "pipeline", "said"),
    [
        pytest.param(two_texts, "text-classification", r"(not_)?equivalent", id="two texts"),
        pytest.param(likeness, "text-classification", r"-?\d+\.\d+(e-\d+)?", id="a score", marks=pytest.mark.slow),
        pytest.param(language_model("bert"), "fill-mask", r"(?s).*", id="masked", marks=pytest.mark.slow),
        pytest.param(language_model("gpt2"), "text-generation", r"(?s).+", id="causal"),
        pytest.param(language_model("xlnet"), "text-generation", r"(?s).+", id="permutation", marks=pytest.mark.slow),
        pytest.param(language_model("t5"), "translation", r"(?s).*", id="T5", marks=pytest.mark.slow),
        pytest.param(language_model("marian"), "translation", r"(?s).*", id="Marian", marks=pytest.mark.slow),
        pytest.param(embedding, "feature-extraction", r"-?\d\.\d+", id="embedding", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_code_in_a_card_runs_as_it_stands(made, pipeline, said, tmp_path, teacher, monkeypatch, capsys):
    out = trained(tmp_path / "run", **made(tmp_path, teacher))
    card = read(out)
    assert card.data.pipeline_tag == pipeline
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    assert ('"A text.", "Another text."' in code) == (made in (two_texts, likeness, embedding))
    monkeypatch.chdir(out / "student")
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(said, capsys.readouterr().out.strip())


@pytest.mark.slow
def test_languages_are_those_that_a_translation_names(tmp_path, teacher):
    out = trained(tmp_path / "run", **language_model("t5")(tmp_path, teacher))
    assert read(out).data.language == ["en", "de"]


def test_a_students_own_card_needs_no_template_engine(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert model_card(read_record(classifier), classifier).startswith("---\n")


def test_what_cannot_have_a_card_is_one_line(kdalign, classifier, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("teacher: t\n")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "record.json").write_bytes((classifier / "record.json").read_bytes())
    for given, said in (
        ("nowhere", "no run at 'nowhere'"),
        ("begun", "is not finished"),
        ("bare", "is missing, which was there when the run ended"),
        (str(Path(classifier) / "record.json"), "give the run's folder"),
    ):
        status, out, err = kdalign("card", given)
        assert (status, out) == (2, "")
        assert said in one_line(err)


def test_no_name_in_a_card_is_markup_and_its_front_matter_stays_right(classifier, tmp_path):
    from markdown_it import MarkdownIt

    hostile = "x\n\n# Injected\n![p](http://evil.example/p) <script>y</script> [z](javascript:1) |`"
    hostile += "\x1b[31m\u202e\n---\n"
    folder = tmp_path / "a <b>![r](http:x)\n# Head"
    shutil.copytree(classifier, folder)
    record = read_record(folder)
    scores = json.loads(json.dumps(record.scores))
    for score in scores["validation"]["student"]:
        score |= {"metric": hostile, "signature": hostile, "unit": hostile}
    data = json.loads(json.dumps(record.data))
    data |= {"source": hostile, "checks": {"memory": hostile}}
    parts = {
        "task": hostile, "version": hostile, "scores": scores, "data": data,
        "student": replace(record.student, source=hostile, head=hostile),
        "teacher": replace(record.teacher, source=hostile), "environment": {**record.environment, "device": hostile},
        "recipe": {**record.recipe, "allow": ["memory"], "teacher": hostile, "student": hostile},
    }  # fmt: skip
    text = model_card(replace(record, **parts), folder)
    assert [part for part in text.split("\n") if not part.isprintable()] == []
    card = ModelCard(text)
    assert card.data.to_dict()["model-index"][0]["name"] == "a <b>![r](http:x) # Head"
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    kinds = {child.type for token in tokens for child in (token, *(token.children or ()))}
    assert not {"image", "link_open", "html_inline", "html_block"} & kinds
    heads = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert heads[1:] == ["Scores", "Training", "Data", "Limits", "Use", "Reproduce"]


def test_a_students_configuration_may_hold_infinities_as_transformers_writes_them(classifier, tmp_path):
    folder = Path(shutil.copytree(classifier, tmp_path / "run"))
    file = folder / "student" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "limits": [0.0, float("inf")]}))
    assert model_card(read_record(folder), folder).startswith("---\n")
