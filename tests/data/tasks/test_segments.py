"""Segments of streams: every row once a pass whatever the file, the errors of the whole file, and rows that changed."""

import gzip
import json
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest

from kdalign.data.tasks import find_task, load_examples, load_texts
from kdalign.data.tasks.language import LanguageTask
from kdalign.data.tasks.segments import SegmentReader, first_place
from kdalign.errors import UsageError

FORMATS = ["jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "tsv.gz"]


def write(folder, rows, kind="jsonl", split="train"):
    folder.mkdir(exist_ok=True)
    file = folder / f"{split}.{kind}"
    match kind.removesuffix(".gz"):
        case "parquet":
            pd.DataFrame(rows).to_parquet(file, row_group_size=7)
        case "jsonl":
            pack(file, "".join(json.dumps(row) + "\n" for row in rows))
        case "txt":
            pack(file, "".join(row["text"] + "\n" for row in rows))
        case "csv" | "tsv" as plain:
            pack(file, pd.DataFrame(rows).to_csv(index=False, sep="," if plain == "csv" else "\t"))
    return folder


def pack(file, text):
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def numbered(n, first=0):
    return [{"text": f"text {row}", "label": row % 2} for row in range(first, first + n)]


def examples_of(task):
    return load_texts(task, "train") if isinstance(task, LanguageTask) else load_examples(task, "train")


def segments(task, count):
    """The first segments of a stream, each with its place."""
    train = examples_of(task)
    place = first_place(task, train)
    found, reader = [(place, train)], SegmentReader(task, place)
    while len(found) < count:
        place, examples = reader.after(place)
        place = replace(place, number=place.number + 1)
        found.append((place, examples))
    return found


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("rows", "held"), [(1, 5), (4, 5), (5, 5), (6, 5), (20, 5), (23, 5), (23, 1), (23, 22)])
def test_each_pass_has_every_row_once_in_the_order_of_the_file(tmp_path, kind, rows, held):
    write(tmp_path, numbered(rows), kind)
    write(tmp_path, numbered(2), split="validation")
    for name in ("classification", "lm:text") if min(rows, held) > 1 else ("lm:text",):
        task = find_task(name, str(tmp_path), held_rows=held)
        a_pass = -(-rows // held)
        found = segments(task, 3 * a_pass)
        for number in range(3):
            own = found[number * a_pass : (number + 1) * a_pass]
            assert [place.passes for place, _ in own] == [number] * a_pass
            assert [text for _, part in own for text in part.texts[0]] == [f"text {row}" for row in range(rows)]
            assert [place.row for place, _ in own] == list(range(0, rows, held))
            if name == "classification":
                assert [label for _, part in own for label in part.labels.tolist()] == [r % 2 for r in range(rows)]
        assert [place.read for place, _ in found][-1] == 3 * rows
        assert {place.examples for place, _ in found[a_pass - 1 :]} == {rows}, "counted in the first pass alone"


def test_shards_and_lines_of_text_are_one_stream(tmp_path):
    for number, (first, n) in enumerate([(0, 9), (9, 1), (10, 13)]):
        write(tmp_path, numbered(n, first), "parquet", f"train-{number:05d}-of-00003")
    found = segments(find_task("lm:text", str(tmp_path), held_rows=5), 5)
    assert [text for _, part in found for text in part.texts[0]] == [f"text {row}" for row in range(23)]
    for kind in ("txt", "txt.gz"):
        folder = write(tmp_path / kind, numbered(8), kind)
        found = segments(find_task("lm", str(folder), held_rows=3), 4)
        assert [len(part) for _, part in found] == [3, 3, 2, 3]


def test_parts_of_a_text_file_are_cut_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("kdalign.data.table_parts.BYTES", 50)
    monkeypatch.setattr("kdalign.data.table_parts.ROWS", 4)
    for kind in FORMATS:
        folder = write(tmp_path / kind, numbered(41), kind)
        found = segments(find_task("lm:text", str(folder), held_rows=6), 14)
        assert [text for _, part in found for text in part.texts[0]] == [f"text {row}" for row in range(41)] * 2


def test_documents_without_a_word_are_left_out_and_all_columns_are_documents(tmp_path):
    rows = [{"a": f"a{row}", "b": " " if row % 3 else f"b{row}"} for row in range(10)]
    write(tmp_path, rows)
    (tmp_path / "task.yaml").write_text(f"kind: lm\ncolumns: [a, b]\ndata: {tmp_path}\n")
    found = segments(find_task(str(tmp_path / "task.yaml"), held_rows=4), 4)
    assert [part.texts for _, part in found[:2]] == [
        (("a0", "a1", "a2", "a3", "b0", "b3"),),
        (("a4", "a5", "a6", "a7", "b6"),),
    ]
    assert [(place.rows, place.passed_over) for place, _ in found] == [(4, 2), (4, 5), (2, 6), (4, 6)]


def whole_error(name, folder):
    with pytest.raises(UsageError) as error:
        examples_of(find_task(name, str(folder)))
    return str(error.value)


BAD_ROWS = {
    "no text": ("sst2", {"sentence": None, "label": 1}),
    "a number": ("sst2", {"sentence": 7, "label": 1}),
    "half a character": ("sst2", {"sentence": "\ud800", "label": 1}),
    "no label": ("sst2", {"sentence": "a", "label": None}),
    "another label": ("sst2", {"sentence": "a", "label": 5}),
    "a label in words": ("sst2", {"sentence": "a", "label": "good"}),
    "a list as label": ("sst2", {"sentence": "a", "label": [1]}),
    "not a score": ("stsb", {"sentence1": "a", "sentence2": "b", "label": "x"}),
    "half a pair": ("translation:a-b", {"a": "one", "b": " "}),
    "no conversation": ("chat", {"messages": []}),
    "no answer": ("chat", {"messages": [{"role": "user", "content": "?"}]}),
}
GOOD_ROWS = {
    "sst2": {"sentence": "fine", "label": 1},
    "stsb": {"sentence1": "a", "sentence2": "b", "label": 2.5},
    "translation:a-b": {"a": "one", "b": "eins"},
    "chat": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
}


@pytest.mark.parametrize(("name", "bad"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_in_a_later_segment_gives_the_error_of_the_whole_file(tmp_path, name, bad):
    good = GOOD_ROWS[name]
    write(tmp_path, [good] * 8 + [bad] + [good] * 4)
    said = whole_error(name, tmp_path)
    assert "row 8" in said
    task = find_task(name, str(tmp_path), held_rows=3)
    assert len(segments(task, 2)) == 2
    with pytest.raises(UsageError) as error:
        segments(task, 3)
    # The whole file is compared with its first row, a segment with its own first one.
    assert str(error.value).replace("row 6", "row 0") == said


def test_labels_are_read_by_all_that_were_seen(tmp_path):
    scores = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1.0, 2.5, -1.0, -1.0, 3.0)]
    found = segments(find_task("stsb", str(write(tmp_path / "scores", scores)), held_rows=2), 3)
    assert [part.labels.tolist() for _, part in found] == [[1.0, 2.5], [-1.0, -1.0], [3.0]]
    words = [{"sentence": "a", "label": label} for label in ("negative", "positive", "0", "1")]
    assert "label in row 2" in whole_error("sst2", write(tmp_path / "words", words))
    with pytest.raises(UsageError, match=r"in rows 2 to 3, labels in 'label' are written otherwise than in the rows b"):
        segments(find_task("sst2", str(tmp_path / "words"), held_rows=2), 2)
    unknown = [{"sentence": "a", "label": label} for label in (0, 1, -1, -1)]
    with pytest.raises(UsageError, match="rows 2 to 3 have no label in 'label'"):
        segments(find_task("sst2", str(write(tmp_path / "unknown", unknown)), held_rows=2), 2)


def test_rows_appended_after_the_end_was_met_are_read_in_the_next_pass(tmp_path):
    task = find_task("lm:text", str(write(tmp_path, numbered(8))), held_rows=5)
    found = segments(task, 2)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in numbered(3, 8))
    reader = SegmentReader(task, found[0][0])
    assert reader.again(found[1][0]).texts == found[1][1].texts, "as it was, though the file has grown"
    place, passes = found[1][0], []
    for _ in range(6):
        place, examples = reader.after(place)
        passes.append((place.passes, len(examples)))
    assert passes == [(1, 5), (1, 5), (1, 1), (2, 5), (2, 5), (2, 1)]


@pytest.mark.parametrize("change", [0, 6])
def test_rows_that_changed_since_they_were_read_are_refused(tmp_path, change):
    rows = numbered(12)
    task = find_task("lm:text", str(write(tmp_path, rows)), held_rows=5)
    first, second = (place for place, _ in segments(task, 2))
    rows[change] = {**rows[change], "text": "another"}
    write(tmp_path, rows)
    which = "rows 0 to 4" if change < 5 else "rows 5 to 9"
    with pytest.raises(UsageError, match=f"{which} are not as they were when the run read them"):
        SegmentReader(task, first).again(second)


def test_a_file_that_can_only_be_read_as_a_whole_is_refused(tmp_path):
    (tmp_path / "train.csv").write_bytes("text\na\nb\n".encode("utf-16"))
    with pytest.raises(
        UsageError, match=r"train.csv' can only be read as a whole, and data.streaming=true reads parts"
    ):
        find_task("lm", str(tmp_path), held_rows=2)


def test_a_packed_file_that_is_none_is_named(tmp_path):
    (tmp_path / "train.jsonl.gz").write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"train.jsonl.gz' cannot be unpacked: Not a gzipped file"):
        find_task("lm", str(tmp_path), held_rows=2)


def test_keys_that_only_some_rows_have_are_none_in_the_others(tmp_path):
    rows = [*numbered(3), {"text": "text 3", "more": 1}, *numbered(4, 4)]
    found = segments(find_task("lm:text", str(write(tmp_path, rows)), held_rows=3), 3)
    assert [text for _, part in found for text in part.texts[0]] == [f"text {row}" for row in range(8)]
    assert all(before.end == after.row for (before, _), (after, _) in pairwise(found))


def test_a_reader_that_is_stopped_reads_no_further(tmp_path):
    task = find_task("lm:text", str(write(tmp_path, numbered(30))), held_rows=10)
    place = first_place(task, load_texts(task, "train"))
    reader = SegmentReader(task, place)
    reader.stop()
    with pytest.raises(CancelledError):
        reader.after(place)
