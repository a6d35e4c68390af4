"""Check the tokens of training text before any weights load: ends never learned, other beginnings or templates.

A slice of the training text is tokenized as the run will tokenize all of it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import tokenize_labelled_several
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import Examples, LanguageTask
from kdalign.data.tokenization import special_frame
from kdalign.data.tokenized_split import IGNORED, TEACHER, TokenizedSplit
from kdalign.distillation.checks import UNSHARED, Finding
from kdalign.distillation.prepare import PreparedRun, teacher_role, whose
from kdalign.errors import UsageError, shorten
from kdalign.models.architecture import vocabulary_size
from kdalign.models.generation_settings import end_tokens, find_generation_settings
from kdalign.models.heads import HeadKind

_SLICES = ((64, 200_000), (1_024, 2_000_000))
"""Most rows and characters of the slice, and of the larger one that is read before a run is refused."""
_BEGINNING = 200
"""Characters of a document that are read: its end token is added whatever its length."""
_SHOWN = 80
"""Most characters of a beginning that are shown."""


def token_findings(run: PreparedRun, student: PretrainedConfig) -> Iterator[Finding]:
    """Check the tokens of a slice of train.

    Args:
        run: the run.
        student: the student's configuration.
    """
    yield from _vocabularies(run, student)
    softened = run.adapter.predicts_tokens and run.recipe.objective.built.alpha > 0
    if run.recipe.cache.folder is not None and run.tokenizers.differ and softened:
        yield Finding("unshared tokens", UNSHARED)
    if run.tokenizers.student is None:
        return  # it is still to be trained, with the ends that its family needs
    yield from _beginnings(run, student)
    yield from _templates(run)
    if run.adapter.head in (HeadKind.CAUSAL, HeadKind.SEQ2SEQ):
        yield from _ends(run, student, run.tokenizers.student)


def _vocabularies(run: PreparedRun, student: PretrainedConfig) -> Iterator[Finding]:
    """Find one vocabulary that both models pad to different sizes."""
    alone = run.tokenizers.teacher is None  # it teaches features alone, if there is one
    if run.teacher is None or alone or run.tokenizers.differ or not run.adapter.predicts_tokens:
        return
    ours, theirs = vocabulary_size(student), vocabulary_size(run.teacher.config)
    if ours != theirs:
        yield Finding(
            "vocabulary",
            f"{ours:,} rows in the student, {theirs:,} in the teacher: predictions are compared on the first "
            f"{min(ours, theirs):,}, which hold all {run.tokenizers.size:,} tokens",
        )


def _ends(run: PreparedRun, student: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Find training text that never has an end token as a target: generation would not stop."""
    own = run.student.checkpoint if run.tokenizers.differ else run.student.checkpoint or run.teacher
    ends = end_tokens(find_generation_settings(own, student), tokenizer)
    rows, truncated = list[list[int]](), 0
    for most, characters in _SLICES:
        part = _slice(run, most, characters)
        encoded = _tokenize(run, part, student)
        if encoded is None or "targets" not in encoded.columns:
            return  # a permutation model predicts all of a text, and writes as many tokens as it is asked for
        rows = [[token for token in targets if token != IGNORED] for targets in encoded.columns["targets"]]
        truncated = encoded.truncated
        if any(token in ends for targets in rows for token in targets):
            return
        if len(part) == len(run.splits.train):
            break
    stops = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in ends) or "(it has none)"
    said = (
        f"no training target contains the end token {stops} ({len(rows):,} rows read), so the student would not learn "
        "to stop"
    )
    written = _last_special(rows, tokenizer)
    if written is not None:
        mend = f"name {written!r}, which ends texts there, as eos_token_id in config.json and generation_config.json"
    elif truncated:
        cut = f"{'all ' * (truncated == len(rows))}{truncated:,} rows are cut at {run.adapter.max_length} tokens"
        mend = f"{cut}, raise --max-length"
    else:
        mend = f"let the chat template write {stops} after the assistant's turns"
    yield Finding("no-end", said, mend)


def _last_special(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the special token that most rows of targets end with, or else have somewhere; None if there is none."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for places in (slice(-1, None), slice(None)):
        found = Counter(token for targets in rows for token in targets[places] if token in special)
        if found:
            return str(tokenizer.convert_ids_to_tokens(found.most_common(1)[0][0]))
    return None


def _slice(run: PreparedRun, most: int, characters: int) -> Examples:
    """Take rows from all over train, at least one; of documents, their beginnings."""
    train, task = run.splits.train, run.task
    count = min(most, len(train))
    part = train.take((np.arange(count) * len(train) // count).tolist())
    if isinstance(task, LanguageTask) and task.kind != "chat" and len(part.texts) == 1:
        return replace(part, texts=(tuple(text[:_BEGINNING] for text in part.texts[0]),))
    read = np.cumsum([sum(map(len, row)) for row in zip(*part.texts, strict=True)])
    return part.take(range(max(1, int(np.searchsorted(read, characters, side="right")))))


def _tokenize(run: PreparedRun, part: Examples, student: PretrainedConfig) -> TokenizedSplit | None:
    """Tokenize rows as the run will; None if none of them can be used, though others may.

    Raises:
        UsageError: the reason, if the rows are all there are.
    """
    ours, theirs = run.tokenizers.student, run.tokenizers.teacher
    assert ours is not None, "a tokenizer that is still to be trained has no tokens"
    try:
        if run.readers:
            return tokenize_labelled_several(part, ours, run.readers, run.adapter.max_length)
        if run.tokenizers.differ and theirs is not None and run.teacher is not None:
            return run.adapter.tokenize_dual(part, (ours, theirs), (student, run.teacher.config))
        return run.adapter.tokenize(part, InputReader(ours, student, run.tokenizers.media), scored=False)
    except UsageError:
        if len(part) == len(run.splits.train):
            raise
        return None


def _beginnings(run: PreparedRun, student: PretrainedConfig) -> Iterator[Finding]:
    """Find two tokenizers that put other numbers of special tokens around a text."""
    ours = run.tokenizers.student
    if ours is None or not (run.readers or run.tokenizers.differ):
        return
    if _reads_answers(run):
        return  # each side's prompt is its own, and texts are matched from the answer's first character on
    encoded = _tokenize(run, _slice(run, 1, _SLICES[0][1]), student)
    if encoded is None or "start" not in encoded.columns:
        return
    prefixes = encoded.readers or (TEACHER,)
    others = [
        (teacher_role(number), run.tokenizer_of(number), prefix)
        for number, prefix in enumerate(prefixes)
        if prefix is not None
    ]
    frames = [_frame(encoded, tokenizer, prefix) for _, tokenizer, prefix in (("", ours, ""), *others)]
    adds = {_added(tokenizer) for tokenizer in (ours, *(each for _, each, _ in others))}
    if len({(len(before), len(after)) for before, after in frames}) == 1 and len(adds) == 1:
        return
    sides = []
    for (word, tokenizer, _), (before, after) in zip((("student", ours, ""), *others), frames, strict=True):
        added = "" if _added(tokenizer) or not before else " (its tokenizer itself adds none)"
        begins = f"begin with {' '.join(before)}{added}" if before else "begin with the text"
        sides.append(f"{whose(word)} rows {begins}" + (f" and end with {' '.join(after)}" if after else ""))
    yield Finding("beginnings", f"{', '.join(sides)}; positions are matched by the text between")


def _reads_answers(run: PreparedRun) -> bool:
    """True if causal models learn answers, of conversations or of sources in prompts."""
    task = run.task
    return (
        isinstance(task, LanguageTask) and run.adapter.head is HeadKind.CAUSAL and (task.kind == "chat" or task.pairs)
    )


def _added(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the tokenizer puts a special token before a text."""
    return bool(special_frame(tokenizer)[0])


def _frame(encoded: TokenizedSplit, tokenizer: PreTrainedTokenizerBase, side: str) -> tuple[list[str], list[str]]:
    """Return the special tokens at the beginning and at the end of the first row of one side."""
    ids, starts = encoded.columns[side + "input_ids"][0], encoded.columns[side + "start"][0]
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    inner = [number for number, start in enumerate(starts) if start >= 0] or [len(ids)]
    return tokens[: inner[0]], tokens[inner[-1] + 1 :]


def _templates(run: PreparedRun) -> Iterator[Finding]:
    """Find two chat templates that write other text around a user's message or an answer."""
    ours, theirs = run.tokenizers.student, run.tokenizers.teacher
    if not _reads_answers(run) or ours is None or theirs is None or not (ours.chat_template or theirs.chat_template):
        return
    read = "each model reads its own" if run.tokenizers.differ else "both models read the student's"
    if not (ours.chat_template and theirs.chat_template):
        one, other = ("student", "teacher") if ours.chat_template else ("teacher", "student")
        said = f"the {one}'s tokenizer has a chat template for its prompts and the {other}'s has none; {read}"
        yield Finding("templates", said)
        return
    written = [_written_around(tokenizer) for tokenizer in (ours, theirs)]
    places = ("a conversation begins with", "an answer begins after", "an answer ends with")
    for place, ours_there, theirs_there in zip(places, *written, strict=False):
        if ours_there != theirs_there:
            both = (shorten(repr(text), _SHOWN) for text in (ours_there, theirs_there))
            sides = "{} in the student's and {} in the teacher's".format(*both)
            yield Finding("templates", f"chat templates differ: {place} {sides}; {read}")
            return


_PROBE = ({"role": "user", "content": "\ue000"}, {"role": "assistant", "content": "\ue001"})
"""A conversation whose texts no template writes."""


def _written_around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what a template writes before, between and after two messages; nothing if it refuses them."""
    try:
        whole = str(tokenizer.apply_chat_template([dict(each) for each in _PROBE], tokenize=False))
    except Exception:  # a template is a program: whatever it raises, it refuses
        return ()
    before, _, rest = whole.partition(_PROBE[0]["content"])
    between, _, after = rest.partition(_PROBE[1]["content"])
    return before, between, after
