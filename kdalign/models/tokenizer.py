"""Load the tokenizer of a checkpoint, and compare a student's with its teacher's."""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kdalign.data.media.readers import MediaReader, fingerprint
from kdalign.data.transcript_reader import TranscriptReader
from kdalign.errors import UsageError, library_errors
from kdalign.files import read_json
from kdalign.models.architecture import layout_of, vocabulary_size
from kdalign.models.checkpoint_files import Checkpoint, quiet_transformers
from kdalign.models.gguf_files import read_gguf_tokenizer


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        UsageError: it has none, one without a padding token, or one with ids beyond the model's vocabulary.
    """
    family, name = layout_of(checkpoint.config).family, checkpoint.name
    if not vocabulary_size(checkpoint.config):
        return textless_tokenizer()
    tokenizer = load_tokenizer_named(name, family, checkpoint.path, checkpoint.revision, checkpoint.gguf_file)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    entries = vocabulary_size(checkpoint.config)
    if highest >= entries:
        raise UsageError(
            f"the tokenizer of {name!r} is not this model's: it gives {token!r} the number {highest}, and the model "
            f"has {entries} entries; put the model's own tokenizer beside it"
        )
    return tokenizer


def load_tokenizer_named(
    name: str, family: str, path: str | None = None, revision: str | None = None, gguf: Path | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub id or folder, which need not hold a model, for models of a family.

    Raises:
        UsageError: it has none, or one without a padding token (causal models pad with their end token).
    """
    folder = Path(path or name)
    if gguf is None and folder.is_dir():
        _check_tokenizer_files(name, folder)
    with _refused_without_tokenizer(name, folder if gguf is None else None), quiet_transformers():
        if gguf is not None:
            tokenizer = read_gguf_tokenizer(gguf)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path or name, revision=revision, trust_remote_code=False)
        entries, special = len(tokenizer), len(tokenizer.all_special_ids)
        tokenizer("a b")  # a tokenizer may load and still not work
    if entries <= special:  # from_pretrained makes such a tokenizer if there are no files
        raise UsageError(f"model {name!r} has no tokenizer: its files hold no vocabulary")
    if tokenizer.pad_token_id is None and family == "causal":
        # Padding is masked by length, whatever token it holds.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"the tokenizer of {name!r} has no padding token; name one of its tokens pad_token in tokenizer_config.json"
        )
    return tokenizer


@contextmanager
def _refused_without_tokenizer(name: str, folder: Path | None) -> Iterator[None]:
    """Turn any error of reading a tokenizer into one line: that there is none in a folder, or what the library says.

    Raises:
        UsageError: the model, and what is missing or wrong.
    """
    mend = "a tokenizer.json that this version of tokenizers reads is needed (save it again by save_pretrained)"
    try:
        with library_errors(f"model {name!r} has no tokenizer that can be read", mend):
            yield
    except UsageError as error:
        if folder is None or not folder.is_dir() or any((folder / file).exists() for file in _TOKENIZERS):
            raise
        raise UsageError(f"model {name!r} has no tokenizer: it holds no tokenizer.json") from error


_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def _check_tokenizer_files(name: str, folder: Path) -> None:
    """Refuse files that are no JSON objects, and tokenizers that kdalign cannot read in this form.

    Raises:
        UsageError: the file, and what is accepted.
    """
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / file).is_file() and not isinstance(read_json(folder / file, parse_constant=float), dict):
            raise UsageError(f"{str(folder / file)!r} is not a tokenizer's: it holds no object ({{...}})")
    there = [file for file in (*_TOKENIZERS, "source.spm") if (folder / file).is_file()]
    pieces = [file for file in there if file.endswith((".model", ".spm"))]
    if pieces and "tokenizer.json" not in there and importlib.util.find_spec("sentencepiece") is None:
        raise UsageError(
            f"the tokenizer of {name!r} is a {pieces[0]} without a tokenizer.json, and reading it needs a package: "
            "pip install sentencepiece, or save it beside as tokenizer.json where that is installed"
        )


def same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers give the same ids: the same tokens with the same numbers, special ones included."""
    probe = ("A probe: naïve CAFÉ, 1½ x!", "b")
    return bool(
        first.get_vocab() == second.get_vocab()
        and first.all_special_ids == second.all_special_ids
        and first(*probe).input_ids == second(*probe).input_ids
    )


class TextlessTokenizer(PreTrainedTokenizerBase):  # type: ignore[misc]  # Transformers has no types here
    """Tokenizer of a model that reads no text: it has no entries, and nothing to save."""

    is_fast = False

    def get_vocab(self) -> dict[str, int]:
        """Return no entries."""
        return {}

    @property
    def added_tokens_decoder(self) -> dict[int, object]:
        """Return no entries."""
        return {}

    def __len__(self) -> int:
        return 0

    def save_pretrained(self, *_: object, **__: object) -> tuple[str, ...]:
        """Write nothing."""
        return ()


@functools.cache
def textless_tokenizer() -> TextlessTokenizer:
    """Return the tokenizer of all models that read no text."""
    return TextlessTokenizer()


@dataclass(frozen=True)
class TokenizerPair:
    """The tokenizers of a run's two models, and what prepares sounds or images for them.

    Attributes:
        student: None while it is still to be trained on the text.
        teacher: None without a teacher.
        size: entries of the student's tokenizer; at most as many if it is still to be trained.
        differ: True if both models have one and they give different ids; a tokenizer to be trained is another.
        media: the student's reader of sounds or images; None for a model of text.
        teacher_media: the teacher's.
        transcripts: how a teacher of text reads the transcripts of what its student hears, which is no ``teacher``'s
            tokenizer, since none of its tokens stands for one of the student's; None for other teachers.
    """

    student: PreTrainedTokenizerBase | None
    teacher: PreTrainedTokenizerBase | None
    size: int
    differ: bool
    media: MediaReader | None = None
    teacher_media: MediaReader | None = None
    transcripts: TranscriptReader | None = None

    @property
    def media_differ(self) -> bool:
        """True if both models read sounds or images, each in its own way."""
        if self.media is None or self.teacher_media is None or self.media is self.teacher_media:
            return False
        return fingerprint(self.media) != fingerprint(self.teacher_media)

    @property
    def reads_apart(self) -> MediaReader | None:
        """The teacher's reader of sounds or images; None if it reads the student's inputs."""
        return self.teacher_media if self.media_differ else None

    def with_media(self, student: MediaReader | None, teacher: MediaReader | None) -> "TokenizerPair":
        """Return the pair with readers of sounds or images."""
        return replace(self, media=student, teacher_media=teacher)

    @property
    def special_ids(self) -> list[int]:
        """Ids of the student's special tokens; none while it is still to be trained."""
        return list(self.student.all_special_ids) if self.student is not None else []

    def with_student(self, tokenizer: PreTrainedTokenizerBase) -> "TokenizerPair":
        """Return the pair with a student's tokenizer that is trained by now."""
        return replace(self, student=tokenizer, size=len(tokenizer))


def pair_tokenizers(ours: PreTrainedTokenizerBase | int, theirs: PreTrainedTokenizerBase | None) -> TokenizerPair:
    """Pair the student's tokenizer, or the size of one that is to be trained, with the teacher's, if there is one."""
    if isinstance(ours, int):
        return TokenizerPair(None, theirs, ours, differ=theirs is not None)
    differ = theirs is not None and ours is not theirs and not same_tokenizer(ours, theirs)
    return TokenizerPair(ours, theirs, len(ours), differ)
