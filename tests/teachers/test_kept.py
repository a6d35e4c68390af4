"""Words of kept outputs."""

from kdalign.models.architecture import Layer
from kdalign.teachers.kept import KeptOutputs, parse_kept


def test_words_are_read_again_as_what_they_were_written_of():
    kept = KeptOutputs(tokens=frozenset({1.0, 1.23456789, 0.1}), hidden=frozenset({Layer("encoder", 3)}))
    assert kept.words == ("tokens:0.1", "tokens:1", "tokens:1.23456789", "hidden:encoder.3")
    assert parse_kept(kept.words) == kept
