"""Arrays of a row's outputs, by name."""

import torch

from kdalign.data.batches import collate
from kdalign.models.capture import CaptureSpec
from kdalign.teachers.kept import KeptOutputs
from kdalign.teachers.row_outputs import Formats, decode_tokens, encode_rows, names_of
from support import family_setting

NEAR = (1.00001, 1.000014)
"""Two temperatures of the same first six digits."""


def test_two_temperatures_have_two_arrays_however_near_they_are():
    setting = family_setting.Setting("llama")
    batch, kept = collate(setting.data, [0, 1]), KeptOutputs(tokens=frozenset(NEAR))
    signals = setting.teacher(batch, CaptureSpec())
    rows = encode_rows(batch, signals, kept, Formats(top_k=4, logs="fp32"))
    assert names_of(kept, CaptureSpec()) == ["entries", "logs:1.00001", "logs:1.000014"]
    assert all(set(row) == set(names_of(kept, CaptureSpec())) for row in rows)
    logs = decode_tokens(batch, rows, NEAR, 4, 300).logs
    assert not torch.equal(logs[NEAR[0]], logs[NEAR[1]])
    torch.testing.assert_close(logs[NEAR[0]], logs[NEAR[1]], atol=1e-3, rtol=1e-3)
