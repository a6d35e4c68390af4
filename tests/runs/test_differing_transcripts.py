"""Sounds that student and teacher transcribe differently: which, in what order, and from where."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from kdalign.data.tasks import find_task, load_texts
from kdalign.errors import UsageError
from kdalign.runs.differing_transcripts import find_differing_transcripts
from kdalign.runs.disagreements import find_disagreements
from kdalign.runs.finished import finished_runs
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import read_record
from kdalign.runs.written_texts import WrittenTexts, write_texts
from support.media_setting import save_speech_data
from support.records import run

REFERENCES = ["one two", "a b c d", "so it is", "yes"]
STUDENT = ["one  two ", "a b d", "no", ""]
TEACHER = ["one two", "a b c d", "so it is", "yes"]


@pytest.fixture
def made(tmp_path):
    """A finished run on four sounds, which its data folder still holds."""
    save_speech_data(tmp_path / "speech", rows=1)
    path = run(tmp_path / "a", "speech-recognition", {"accuracy": 80.0}, {"accuracy": 90.0})
    examples = load_texts(find_task("speech-recognition", str(tmp_path / "speech")), "validation")
    record = read_record(path)
    changed = replace(
        record,
        teacher=replace(record.teacher, modality="audio"),
        recipe={**record.recipe, "data": {**record.recipe["data"], "folder": str(tmp_path / "speech")}},
        data={"reported": {"validation": {"n": 4, "fingerprint": examples.fingerprint()}}},
    )
    RunFolder(path).write_record(changed)
    return path


def keep(path, teacher=TEACHER):
    file = RunFolder(path).predictions("validation")
    file.parent.mkdir()
    known = None if teacher is None else WrittenTexts.of(teacher)
    write_texts(file, WrittenTexts.of(STUDENT), [(text,) for text in REFERENCES], known, "")


def found(path, evaluations=()):
    [finished] = finished_runs([path])
    assert find_disagreements(finished) is None
    return find_differing_transcripts(finished, evaluations)


def check(differing):
    """Edits over the words of the longer text: 0, 1 of 4, 3 of 3, and 1 of 1, of which the first two rows are equal."""
    assert (differing.differ, differing.n, differing.headings) == (3, 4, ("sound", "transcript"))
    assert [(each.row, each.distance) for each in differing.examples] == [(2, 1.0), (3, 1.0), (1, 0.25)]
    said = differing.examples[2]
    assert (said.label, said.student, said.teacher) == ("a b c d", "a b d", "a b c d")


def test_the_farthest_apart_come_first_and_white_space_is_no_difference(made):
    keep(made)
    differing = found(made)
    check(differing)
    assert [each.texts for each in differing.examples] == [("1002.wav",), ("1003.wav",), ("1001.wav",)]
    assert differing.examples[0].media.read() == (made.parent / "speech/validation/1002.wav").read_bytes()


def test_few_are_shown_and_sounds_only_while_the_data_is_the_same(made):
    keep(made)
    [finished] = finished_runs([made])
    assert [each.row for each in find_differing_transcripts(finished, most=1).examples] == [2]
    (made.parent / "speech/validation/1000.txt").write_text("other words")
    differing = found(made)
    check(differing)
    assert {(each.texts, each.media) for each in differing.examples} == {((), None)}


def test_without_the_teachers_transcripts_there_is_nothing_to_compare(made):
    keep(made, teacher=None)
    assert found(made) is None


def evaluated(path, **changes):
    """Evaluations of the student and of its teacher, called t, on the run's own examples."""
    record = read_record(path)
    tree = []
    for model, texts, identity in (("other", ["x"] * 4, ""), ("t", TEACHER, ""), ("a", STUDENT, record.identity)):
        file = path.parent / f"{model}-texts.parquet"
        pd.DataFrame({"references": [[text] for text in REFERENCES], "prediction": texts}).to_parquet(file)
        shared = {"task": record.task, "split": "validation", "examples": record.reported["validation"].fingerprint}
        shared |= {"writing": "greedy", "language": "en", "texts": str(file)}
        tree.append({"model": model, "run": identity, **shared, **(changes if model == "t" else {})})
    return json.loads(json.dumps(tree))


def test_evaluations_of_both_models_on_the_same_sounds_are_compared(made):
    check(found(made, evaluated(made)))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "u"},
        {"examples": "0" * 8},
        {"split": "test"},
        {"writing": "4 beams"},
        {"language": ""},
        {"texts": None},
    ],
    ids=str,
)
def test_evaluations_of_another_model_or_of_other_texts_are_not(made, changes):
    assert found(made, evaluated(made, **changes)) is None


def test_a_file_of_texts_that_has_gone_is_left_out_and_another_one_refused(made):
    tree = evaluated(made)
    pd.DataFrame({"references": [["a"]], "prediction": ["a"]}).to_parquet(made.parent / "t-texts.parquet")
    with pytest.raises(UsageError, match="does not hold the texts of 4 examples"):
        found(made, tree)
    pd.DataFrame({"references": [["a"]] * 4, "prediction": [1.0] * 4}).to_parquet(made.parent / "t-texts.parquet")
    with pytest.raises(UsageError, match="does not hold texts with their references"):
        found(made, tree)
    (made.parent / "t-texts.parquet").unlink()
    assert found(made, tree) is None
