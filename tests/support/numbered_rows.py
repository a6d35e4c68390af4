"""A tokenized split whose rows say their own numbers."""

import numpy as np

from kdalign.data.batches import Batch
from kdalign.data.tokenized_split import TokenizedSplit


def numbered(lengths, pad: int = 0) -> TokenizedSplit:
    """Rows whose first token is 100 + their number, and whose label is their number."""
    rows = [[100 + number] + [7] * (length - 1) for number, length in enumerate(lengths)]
    kinds = [[1] * length for length in lengths]
    columns = {"input_ids": rows, "token_type_ids": kinds}
    return TokenizedSplit(columns, np.arange(len(rows)), {"input_ids": pad, "token_type_ids": 0}, 0)


def numbers(batch: Batch) -> list[int]:
    """Numbers of the counted rows of a batch."""
    return (batch.inputs["input_ids"][batch.counted, 0] - 100).tolist()
