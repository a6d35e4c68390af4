"""Transcripts of sounds as a teacher of text reads them, beside the sounds that its student hears."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from kdalign.data.tokenized_split import TEACHER, TOLD, TokenizedSplit


@dataclass(frozen=True)
class TranscriptReader:
    """How a teacher of text reads transcripts.

    Attributes:
        tokenizer: the teacher's.
        most: its positions; a longer transcript is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    most: int

    def add_to(self, split: TokenizedSplit, texts: Sequence[str]) -> TokenizedSplit:
        """Add the teacher's tokens of the transcripts of a split's rows, and which of them are of the transcript.

        The tokens that the tokenizer puts around every text are read, and are none of the transcript. A transcript
        without any token is read as one of padding, since no model reads an empty row.

        Args:
            split: sounds with transcripts, as the student reads them.
            texts: the transcript of each row.
        """
        pad = int(self.tokenizer.pad_token_id)
        read = self.tokenizer(list(texts), return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
        around = read.pop("special_tokens_mask")
        columns = {TEACHER + name: [ids or [0] for ids in rows] for name, rows in read.items()}
        columns[TEACHER + "input_ids"] = [ids or [pad] for ids in read["input_ids"]]
        columns[TEACHER + TOLD] = [[1 - special for special in row] or [0] for row in around]
        longer = sum(len(row) > self.most for row in around)
        columns = {name: [row[: self.most] for row in rows] for name, rows in columns.items()}
        padding = {name: pad if name == TEACHER + "input_ids" else 0 for name in columns}
        many = f"{longer:,} of {len(texts):,} transcripts are longer than the teacher reads ({self.most:,} tokens)"
        remarks = "; ".join(filter(None, [split.remarks, f"{many} and were cut for it" if longer else ""]))
        return replace(split, columns={**split.columns, **columns}, pad=split.pad | padding, remarks=remarks)
