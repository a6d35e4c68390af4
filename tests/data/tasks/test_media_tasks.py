"""Tasks of sounds and images: their columns and classes, from flags, task files and the data."""

import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdalign.data.tasks import find_task, large_splits, load_examples, load_texts, prompt_template
from kdalign.data.tasks.loading import load_unlabelled
from kdalign.data.tasks.unlabelled import unlabelled_texts
from kdalign.errors import UsageError
from kdalign.recipe import DataSettings
from kdalign.recipe.task_defaults import output_kind
from support.media import noise_png, noise_wav


def put(folder, split="train", **columns):
    folder.mkdir(exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / f"{split}.parquet")
    return folder


def sounds(folder, **columns):
    """Two splits of two sounds."""
    for split in ("train", "validation"):
        put(folder, split, wav=[noise_wav(0), noise_wav(1)], **columns)
    return str(folder)


def images(folder, **columns):
    """Two splits of four images."""
    for split in ("train", "validation"):
        put(folder, split, img=[noise_png(number) for number in range(4)], **columns)
    return str(folder)


def test_speech_recognition_is_a_pair_of_sound_and_text():
    task = find_task("speech-recognition:wav-words", ".")
    assert (task.kind, task.columns, task.modality) == ("speech-recognition", ("wav", "words"), "audio")
    assert task.pairs
    assert task.text_metrics == ("wer", "cer", "wer_normalized", "cer_normalized")
    assert output_kind("speech-recognition:wav-words") == "tokens"
    for family in ("seq2seq", "ctc"):
        task.check(family, "model")
    with pytest.raises(UsageError, match="is a causal model; task 'speech-recognition:wav-words' is not for it"):
        task.check("causal", "model")


def test_its_columns_are_inferred_from_the_data(tmp_path):
    task = find_task("speech-recognition", sounds(tmp_path, speaker=["a", "b"], transcript=["one", "two"]))
    assert task.columns == ("wav", "transcript")
    assert task.found == "sounds in wav, transcripts in transcript"
    examples = load_texts(task, "validation")
    assert examples.texts[0].read(1) == noise_wav(1)
    assert examples.texts[1] == ("one", "two")
    with pytest.raises(UsageError, match=r"which column has the transcripts.*as in speech-recognition:wav-speaker"):
        find_task("speech-recognition", sounds(tmp_path, speaker=["a", "b"], words=["one", "two"]))


def test_columns_of_the_usual_names_come_first(tmp_path):
    folder = put(tmp_path, audio=[noise_wav(0)], wav=[noise_wav(1)], text=["one"], sentence=["another"])
    assert load_texts(find_task("speech-recognition", str(folder)), "train").texts[1] == ("one",)


@pytest.mark.parametrize("name", ["wav", "file"])
def test_a_row_without_a_transcript_is_refused(tmp_path, name):
    (tmp_path / "a.wav").write_bytes(noise_wav(0))
    folder = put(tmp_path, **{name: ["a.wav"] * 2, "text": ["one", " "]})
    with pytest.raises(UsageError, match=f"row 1 lacks its {name} or its text$"):
        load_texts(find_task(f"speech-recognition:{name}-text", str(folder)), "train")


def test_a_task_file_may_name_a_task_of_speech(tmp_path):
    file = tmp_path / "digits.yaml"
    file.write_text("kind: speech-recognition\ncolumns: [wav, text]\nlanguage: en\nreferences: [text, other]\ndata: it")
    sounds(tmp_path / "it", text=["one", "two"], other=["1", None])
    task = find_task(str(file))
    assert (task.modality, task.language, task.name) == ("audio", "en", "digits")
    assert load_texts(task, "train").references == (("one", "1"), ("two",))
    file.write_text("kind: speech-recognition\ncolumns: [wav, text]\nprompt: '{wav}'\ndata: it")
    with pytest.raises(UsageError, match=r"a prompt is for texts, and a speech-recognition reads sounds$"):
        find_task(str(file))


@pytest.mark.parametrize(
    ("labels", "names", "order_unknown"),
    [
        ([0, 2, 1, 0], ("LABEL_0", "LABEL_1", "LABEL_2"), False),
        (["dog", "cat", "dog", "cat"], ("cat", "dog"), True),
        (["10", "2", "1", "2"], ("1", "2", "10"), True),
        (["0", "1", "1", "2"], ("LABEL_0", "LABEL_1", "LABEL_2"), False),
    ],
)
def test_image_classification_is_inferred_from_the_data(tmp_path, labels, names, order_unknown):
    task = find_task("image-classification", images(tmp_path, label=labels, note=["a", "b", "c", "d"]))
    assert (task.columns, task.labels, task.modality) == (("img",), names, "image")
    assert task.order_unknown == order_unknown
    assert task.found.startswith(f"images in img, {len(names)} classes (")
    assert task.found.endswith(" in label, scored on validation; not used: note")
    examples = load_examples(task, "train")
    assert [names[label] for label in examples.labels] == [
        name if name in names else f"LABEL_{name}" for name in map(str, labels)
    ]
    assert examples.texts[0].read(3) == noise_png(3)


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})


def test_names_of_classes_are_those_of_the_features(tmp_path):
    rows = {"image": [{"bytes": noise_png(n), "path": None} for n in range(2)], "label": [1, 0]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, FEATURES).to_parquet(tmp_path / f"{split}.parquet")
    task = find_task("image-classification", str(tmp_path))
    assert (task.labels, task.order_unknown) == (("zebra", "ant"), False)
    assert load_examples(task, "train").labels.tolist() == [1, 0]


@pytest.mark.parametrize("source", ["folder", "dataset"])
def test_speech_of_the_hub_is_read_without_decoding_it(tmp_path, source):
    features = {"audio": {"sampling_rate": 8000, "_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    object_of_bytes = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("audio", object_of_bytes), ("text", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"audio": {"bytes": noise_wav(n), "path": f"{n}.wav"}, "text": f"number {n}"} for n in range(3)]
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "set" / f"{split}.parquet")
    examples = load_texts(find_task("speech-recognition", **{source: str(tmp_path / "set")}), "train")
    assert [examples.texts[0].read(row) for row in range(3)] == [noise_wav(n) for n in range(3)]
    assert examples.texts[1] == ("number 0", "number 1", "number 2")


def test_images_of_a_data_set_that_are_files_are_loaded_with_their_bytes(tmp_path):
    for split in ("train", "validation"):
        for name in ("ant", "zebra"):
            file = tmp_path / "set" / split / name / "1.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(noise_png(len(split + name)))
    task = find_task("image-classification", dataset=str(tmp_path / "set"))
    assert task.labels == ("ant", "zebra")
    examples = load_examples(task, "validation")
    assert sorted(examples.texts[0].read(row) for row in range(2)) == sorted([noise_png(13), noise_png(15)])


def test_a_task_file_may_name_a_task_of_images(tmp_path):
    file = tmp_path / "digits.yaml"
    file.write_text("kind: image-classification\ncolumns: img\nlabels: [even, odd]\nlabel: y\ndata: it")
    images(tmp_path / "it", y=["odd", "even", "even", "odd"])
    task = find_task(str(file))
    assert (task.modality, task.metrics) == ("image", ("accuracy",))
    assert output_kind(str(file)) == "classes"
    assert load_examples(task, "train").labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(UsageError, match="task 'digits' reads image data, which a prompt cannot hold"):
        prompt_template(task)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("columns: [img, other]\nlabels: [a, b]", "task 'it' reads one column of image data, and no prompt or answers"),
        ("columns: img\nlabels: [a, b]\nlabel: img", "column 'img' cannot be text and label at once"),
        ("columns: img\nlanguage: en", "'language' is for tasks whose answers are texts"),
    ],
)
def test_a_task_file_of_images_is_checked(tmp_path, lines, line):
    file = tmp_path / "it.yaml"
    file.write_text(f"kind: image-classification\ndata: .\n{lines}")
    with pytest.raises(UsageError, match=line):
        find_task(str(file))


def test_an_unknown_kind_of_task_is_refused_with_the_nearest(tmp_path):
    file = tmp_path / "it.yaml"
    file.write_text("kind: image-clasification\ncolumns: img\ndata: .")
    with pytest.raises(UsageError, match="did you mean 'image-classification'"):
        find_task(str(file))


@pytest.mark.parametrize("name", ["speech-recognition", "image-classification"])
def test_sounds_and_images_are_not_streamed(tmp_path, name):
    with pytest.raises(UsageError, match=r"data, and data\.streaming=true reads text alone: leave it out"):
        find_task(name, str(tmp_path), held_rows=10)


def test_large_splits_are_read_as_small_ones(tmp_path, monkeypatch):
    speech = find_task("speech-recognition", sounds(tmp_path / "speech", text=["one", "two"]))
    vision = find_task("image-classification", images(tmp_path / "vision", label=[0, 1, 1, 0]))
    small = load_texts(speech, "train").fingerprint(), load_examples(vision, "train").fingerprint()
    monkeypatch.setattr(large_splits, "LARGE", 1)
    large = load_texts(speech, "train"), load_examples(vision, "train")
    assert tuple(examples.fingerprint() for examples in large) == small
    assert [examples.texts[0].read(1) for examples in large] == [noise_wav(1), noise_png(1)]


@pytest.mark.parametrize("place", ["train.parquet", "", "folder"])
def test_images_without_labels_are_those_that_are_not_in_the_task(tmp_path, place):
    task = find_task("image-classification", images(tmp_path / "task", label=[0, 1, 1, 0]))
    more = put(tmp_path / "more", img=[noise_png(number) for number in (2, 7, 8)])
    (more / "folder").mkdir()
    for number in (2, 7, 8):
        (more / "folder" / f"{number}.png").write_bytes(noise_png(number))
    found = load_unlabelled(task, more / place)
    assert [found.texts[0].read(row) for row in range(3)] == [noise_png(number) for number in (2, 7, 8)]
    data = DataSettings(task=("image-classification",), unlabelled=str(more / place))
    found = unlabelled_texts(task, data, None, {"train": load_examples(task, "train")}, None, seed=0)
    assert len(found.examples) == 2
    assert found.dropped == {"train": 1}


def test_lines_of_text_are_no_images(tmp_path):
    task = find_task("image-classification", images(tmp_path, label=[0, 1, 1, 0]))
    (tmp_path / "more.txt").write_text("a\nb\n")
    with pytest.raises(UsageError, match="needs column 'img'"):
        load_unlabelled(task, tmp_path / "more.txt")


def test_spoken_digits_are_read(shared):
    if not (shared / "data" / "fsdd").is_dir():
        pytest.skip("spoken digits are not beside this checkout (../shared)")
    task = find_task("speech-recognition", str(shared / "data" / "fsdd"))
    assert task.columns == ("wav", "text")
    examples = load_texts(task, "train")
    assert len(examples) == 2700
    assert len(set(examples.texts[0])) == 2700
    assert set(examples.texts[1]) == set("zero one two three four five six seven eight nine".split())
    assert np.unique([len(name) for name in examples.texts[0]]).tolist() == [len("audio ") + 16]
