"""Teachers that answer prompts with texts: a local model, or one behind an API."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from kdalign.data.chat_templates import check_template, render_prompt
from kdalign.data.conversations import SourcePrompts
from kdalign.data.media.readers import MediaReader, fingerprint
from kdalign.data.tasks import LanguageTask
from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.data.tokenization import special_frame
from kdalign.devices import check_device, make_accelerator
from kdalign.distillation.sequence_level.folder import WORK, GeneratedAnswer, prompt_key
from kdalign.distillation.sequence_level.rows import DOCUMENTS, PromptRow, spoken
from kdalign.distillation.sequence_level.settings import GenerateSettings
from kdalign.errors import NotFinite, RunError, UsageError
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.generation import describe_search, generate_batches
from kdalign.evaluation.request import DTYPES
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint, check_length, find_checkpoint, max_positions
from kdalign.models.heads import LANGUAGE_HEADS, head_of
from kdalign.models.media_reader import check_modality, check_served, load_reader
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.served import OPENAI_URL, ApiModel, Prompt, RequestSampling, ServedSettings

Wanted = Sequence[tuple[PromptRow, int]]
"""Rows with different prompts, each with the number of a sample."""


class AnswerWriter(Protocol):
    """A model that answers prompts with texts; its weights are not loaded, and nothing is sent, before ``answer``."""

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the teacher: its name, and the hash of its weights or the URL of its API."""

    @property
    def notes(self) -> list[str]:
        """Notes for the user before the answers."""

    def show_prompts(self, rows: Sequence[PromptRow]) -> list[str]:
        """Write prompts as the model sees them."""

    def answer(
        self, wanted: Wanted, known: set[tuple[str, int]], observer: Observer
    ) -> Iterator[list[GeneratedAnswer]]:
        """Answer prompts in batches, but for those whose answers are known; every rank gets all answers.

        Raises:
            RunError: the model, its server or the budget fails.
        """

    def record(self) -> dict[str, Any]:
        """Return how a server answered and what was paid for; empty for a local model."""


def find_teacher(settings: GenerateSettings, task: LanguageTask) -> AnswerWriter:
    """Find the teacher and check that it can answer the task.

    Raises:
        UsageError: there is no such model, or it does not fit the task.
    """
    return ServedWriter(settings, task) if settings.served else LocalWriter.find(settings, task)


def generation_settings(settings: GenerateSettings) -> GenerationSettings:
    """Return the settings of text generation."""
    return GenerationSettings(
        settings.beams,
        settings.new_tokens,
        max_length=settings.source_length,
        temperature=settings.heat,
        top_p=settings.top_p,
        seed=settings.seed,
        rows=settings.batch_size,
    )


@dataclass(frozen=True)
class LocalWriter:
    """A causal model or an encoder-decoder on this machine.

    Attributes:
        checkpoint: the model.
        tokenizer: its tokenizer.
        task: task that is answered.
        settings: how it answers.
        media: its reader of sounds; None for a model of text.
    """

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    task: LanguageTask
    settings: GenerateSettings
    media: MediaReader | None = None

    @classmethod
    def find(cls, settings: GenerateSettings, task: LanguageTask) -> "LocalWriter":
        """Find a checkpoint, and check what can be checked without keeping its weights in memory."""
        check_device(settings.device)
        checkpoint = find_checkpoint(settings.teacher, settings.revision)
        family, name = layout_of(checkpoint.config).family, settings.teacher
        check_modality(name, checkpoint.config.model_type, task)
        accepted = ("causal", "seq2seq") if task.pairs else ("causal",)
        if family not in accepted:
            which = "a causal model or an encoder-decoder" if task.pairs else "a causal model"
            raise UsageError(f"{name!r} is a {family} model, and task {task.word!r} is answered by {which}")
        if head_of(checkpoint.config) is not LANGUAGE_HEADS[family]:
            raise UsageError(f"{name!r} has no language-model head, so it writes no answers")
        if family == "seq2seq" and checkpoint.config.decoder_start_token_id is None:
            raise UsageError(
                f"the configuration of {name!r} does not say by which token its answers begin: set "
                "decoder_start_token_id in config.json"
            )
        if settings.max_length is not None:
            check_length(checkpoint, settings.max_length)
        loading.check_weights(checkpoint, LANGUAGE_HEADS[family])
        reader = load_reader(checkpoint)
        if task.kind == "chat":
            check_template(reader.tokenizer)
        if reader.media is not None:
            _check_speech(settings)
        return cls(checkpoint, reader.tokenizer, task, settings, reader.media)

    @property
    def identity(self) -> dict[str, Any]:
        """Name and hash of the weights, and the commit on the hub."""
        return {
            "teacher": self.settings.teacher,
            "teacher_hash": self.checkpoint.hash,
            "revision": self.checkpoint.revision,
            **({} if self.media is None else {"feature_extractor": fingerprint(self.media)}),
        }

    @property
    def notes(self) -> list[str]:
        """Limits of the model's positions."""
        half = max_positions(self.checkpoint.config) // 2
        if self.family == "causal" and self.settings.new_tokens > half:
            return [
                f"at most {half:,} new tokens, half of the model's positions (--new-tokens {self.settings.new_tokens})"
            ]
        return []

    @property
    def family(self) -> str:
        """The model's family."""
        return layout_of(self.checkpoint.config).family

    def cases(self, wanted: Wanted) -> list[GenerationCase]:
        """Write the prompts of rows."""
        return [self._case(row, draw) for row, draw in wanted]

    def _case(self, row: PromptRow, draw: int) -> GenerationCase:
        known = row.references or ("",)
        if self.task.kind == "chat":
            asked = row.conversation
            prompt = "".join(render_prompt(asked.messages, self.tokenizer, asked.tools))
            return GenerationCase(prompt, known, draw=draw, rendered=True)
        stop = "" if self._prompts is None else self._prompts.stop
        continues = self.task.kind in DOCUMENTS
        return GenerationCase(row.prompt, known, stop=stop, draw=draw, continues=continues, media=row.sound)

    @property
    def _prompts(self) -> SourcePrompts | None:
        """Prompts in which a causal model reads sources, as in training and evaluation."""
        return SourcePrompts(self.task, self.tokenizer) if self.task.pairs and self.family == "causal" else None

    @property
    def _generation(self) -> GenerationSettings:
        plain = generation_settings(self.settings)
        longest = min(plain.max_length, max_positions(self.checkpoint.config))
        language = self.settings.language or self.task.language
        return replace(
            plain,
            max_length=longest,
            prompts=self._prompts,
            prompt_length=self.settings.max_length,
            media=self.media,
            language=language,
        )

    def show_prompts(self, rows: Sequence[PromptRow]) -> list[str]:
        """Write prompts with their special tokens; of sounds, their names."""
        if self.media is not None:
            return [f"{row.sound.name} [{row.prompt}]" for row in rows if row.sound is not None]
        shown = []
        for case in self.cases([(row, 0) for row in rows]):
            if self.family == "seq2seq":
                ids = self.tokenizer(case.prompt, truncation=True, max_length=self._generation.max_length)["input_ids"]
            elif self._prompts is not None:
                room = self.settings.max_length or max_positions(self.checkpoint.config)
                ([ids], _) = self._prompts.tokenize([case.prompt], [room])
            else:
                before = [] if case.rendered else special_frame(self.tokenizer)[0]
                ids = [*before, *self.tokenizer(case.prompt, add_special_tokens=False, verbose=False)["input_ids"]]
            shown.append(str(self.tokenizer.decode(ids)))
        return shown

    def answer(
        self, wanted: Wanted, known: set[tuple[str, int]], observer: Observer
    ) -> Iterator[list[GeneratedAnswer]]:
        """Load the model, and answer batch by batch, which ranks share."""
        keys = [(prompt_key(row.prompt), draw) for row, draw in wanted]
        numbers = {number for number, key in enumerate(keys) if key in known}
        if len(numbers) == len(keys):
            return
        device = make_accelerator(self.settings.device).device
        observer.announce(f"loading {self.settings.teacher}")
        dtype = DTYPES[self.settings.precision]
        model = loading.round_weights(loading.load_language_model(self.checkpoint), dtype).to(device)
        progress, left = observer.progress(f"{self.settings.teacher}: answering"), len(keys) - len(numbers)
        batches = generate_batches(model, self.tokenizer, self.cases(wanted), self._generation, numbers)
        done = 0
        try:
            for batch in batches:
                answers = {number: answer for number, answer in batch.items() if number not in numbers}
                done += len(answers)
                yield [
                    GeneratedAnswer(*keys[number], one.text, one.ended, one.cut, one.prompt_tokens, one.new_tokens)
                    for number, one in answers.items()
                ]
                progress(done, left)
        except NotFinite as error:
            raise RunError(f"{self.settings.teacher!r}: {error}") from None

    def record(self) -> dict[str, Any]:
        """Return nothing further."""
        return {}


def _check_speech(settings: GenerateSettings) -> None:
    """Refuse settings that do not apply to sounds, whose transcripts are searched for and not drawn.

    Raises:
        UsageError: the option.
    """
    if settings.heat > 0:
        raise UsageError("speech is transcribed greedily or by --beams: leave out --samples, --temperature and --top-p")
    if settings.max_length is not None:
        raise UsageError("--max-length is for prompts of tokens, and sounds have none: leave it out")
    if "source_ratio" in settings.measures:
        raise UsageError("source_ratio counts the words of sources, and sounds have none (accepted: words, ratio, wer)")


class ServedWriter:
    """A model behind an API."""

    def __init__(self, settings: GenerateSettings, task: LanguageTask) -> None:
        """Check the model's name, URL and settings; nothing is sent.

        Raises:
            UsageError: one of them is invalid, documents are to be continued by a chat endpoint, or sounds to be read.
        """
        check_served(settings.teacher, task)
        if settings.chat and task.kind in DOCUMENTS:
            raise UsageError(f"a chat endpoint continues no documents, as task {task.word!r} asks: leave --chat out")
        self._task, self._settings = task, settings
        self._record: dict[str, Any] = {}
        with self._open() as api:
            self._url = api.url

    def _open(self) -> ApiModel:
        settings = self._settings
        served = ServedSettings(
            settings.concurrency,
            max_requests=settings.max_requests,
            max_tokens=settings.max_tokens,
            chat=settings.chat or self._task.kind == "chat",
        )
        return ApiModel(settings.teacher, settings.base_url or OPENAI_URL, Path(settings.out) / WORK, served)

    @property
    def identity(self) -> dict[str, Any]:
        """Name and URL."""
        return {"teacher": self._settings.teacher, "url": self._url, "chat": self._settings.chat}

    @property
    def notes(self) -> list[str]:
        """Note that a server's samples may differ each time."""
        if self._settings.heat > 0:
            return ["a server need not heed the seed, and answers may depend on its load: its answers are kept instead"]
        return []

    def show_prompts(self, rows: Sequence[PromptRow]) -> list[str]:
        """Write prompts as they are sent."""
        if self._task.kind == "chat":
            return [spoken(row.conversation.messages) for row in rows]
        return [str(self._prompt(row)) for row in rows]

    def _prompt(self, row: PromptRow) -> Prompt:
        if self._task.kind == "chat":
            return row.conversation.messages
        return self._task.render_prompt({self._task.columns[0]: row.prompt}) if self._task.pairs else row.prompt

    def answer(
        self, wanted: Wanted, known: set[tuple[str, int]], observer: Observer
    ) -> Iterator[list[GeneratedAnswer]]:
        """Request the answers that the server has not given yet, on the first rank alone."""
        if wanted:
            yield on_first_rank(lambda: self._ask(wanted, observer))

    def _ask(self, wanted: Wanted, observer: Observer) -> list[GeneratedAnswer]:
        """Request answers: raw text ends where its line does, answers of a chat endpoint are taken whole."""
        prompts = [self._prompt(row) for row, _ in wanted]
        limits = [self._settings.new_tokens] * len(prompts)
        sampling = [self._sampling(draw) for _, draw in wanted]
        stop = ["\n"] if self._task.pairs and not self._settings.chat else []
        with self._open() as api:
            api.answer(prompts[:1], limits[:1], stop, sampling=sampling[:1])  # shows which endpoint answers
            if api.endpoint == "chat":
                stop = []
                if self._task.kind in DOCUMENTS:
                    raise RunError(f"the server at {self._url} only chats, and continues no documents")
            progress = observer.progress(f"{self._settings.teacher}: answering")
            answers = api.answer(prompts, limits, stop, progress, sampling)
            self._record = api.record()
        texts = [one.text.rstrip() if self._task.kind in DOCUMENTS else one.text.strip() for one in answers]
        return [
            GeneratedAnswer(prompt_key(row.prompt), draw, text, one.ended, False, one.prompt_tokens, one.new_tokens)
            for (row, draw), one, text in zip(wanted, answers, texts, strict=True)
        ]

    def _sampling(self, draw: int) -> RequestSampling:
        """Return how a sample is drawn: each of a prompt has a seed of its own."""
        if not self._settings.heat:
            return RequestSampling()
        return RequestSampling(self._settings.heat, self._settings.top_p, (self._settings.seed * 1_009 + draw) % 2**31)

    def record(self) -> dict[str, Any]:
        """Return the API's record: endpoint, names under which it answered, requests and tokens paid for."""
        return self._record


def describe_decoding(settings: GenerateSettings) -> str:
    """Describe how answers are generated, in a phrase."""
    times = f", {settings.samples} samples a prompt" if settings.samples > 1 else ""
    return f"{describe_search(generation_settings(settings))}{times}, at most {settings.new_tokens:,} new tokens"
