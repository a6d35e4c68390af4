"""Settings of sequence-level data: validated once, with one line for the first that is wrong."""

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from kdalign.distillation.sequence_level.filters import OF_TRANSCRIPTS, check_best_of, parse_filters
from kdalign.environment import program
from kdalign.errors import UsageError, shorten
from kdalign.metrics.languages import language_code
from kdalign.recipe import LONGEST_INPUT, MOST_ROWS, MOST_TOKENS, DataSettings
from kdalign.recipe.sections import Rows, Section, Seed
from kdalign.recipe.task_defaults import task_defaults
from kdalign.served import is_served

MOST_SAMPLES = 1_000
MOST_WER = 10_000
Few = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
Length = Annotated[int, Field(ge=1, le=LONGEST_INPUT)]

_OPTIONS = {"folder": "--data"}
"""Options of fields that have another name."""
_SERVED_ONLY = ("base_url", "chat", "concurrency", "max_requests", "max_tokens")
_LOCAL_ONLY = ("beams", "revision", "precision", "device", "batch_size", "max_length")


class GenerateSettings(Section):
    """Every choice of ``kdalign generate``."""

    teacher: str
    """Hub id, folder or run of the model that answers, or ``openai:NAME``."""
    task: str
    """Task of texts: pairs, ``chat``, ``lm`` or ``language-modeling``."""
    out: str
    """Folder of the data that is written."""
    folder: str | None = None
    """Folder of the data that is answered."""
    dataset: str | None = None
    """Data set on the hub, in place of a folder."""
    config: str | None = None
    """Configuration of that data set."""
    limit: Rows | None = None
    """Rows of train that are answered, the first; all if left out."""
    revision: str | None = None
    """Revision of the teacher on the hub."""
    beams: Few = 1
    """Beams of the search; 1 is greedy."""
    samples: Few = 1
    """Answers to each prompt."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Temperature of samples; 0, the likeliest token each time, unless there are several samples, which have 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability from which samples are drawn, its likeliest tokens."""
    seed: Seed = 0
    """Seed of samples."""
    new_tokens: Length = 256
    """Most tokens of an answer."""
    max_length: Length | None = None
    """Longest prompt in tokens; by default the task's for an encoder-decoder, and as many as the positions of a causal
    model allow."""
    keep: tuple[str, ...] = ()
    """Filters of answers, such as ``rougeL>=30``; ``any-end`` keeps answers cut off by the token limit, too."""
    max_wer: Annotated[float, Field(ge=0, le=MOST_WER)] | None = None
    """Most word error rate of a transcript against the data's own, in per cent, both by Whisper's normaliser: a filter
    as ``wer_normalized<=20``."""
    best_of: str | None = None
    """Metric by which the best answer of each row is kept alone."""
    language: str | None = None
    """Language of the answers, for metrics; the task's if left out."""
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Answers that are generated at once."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of a local teacher."""
    device: str = "auto"
    """Device of a local teacher."""
    base_url: str | None = None
    """URL of the API of a served teacher; OpenAI's if left out."""
    chat: bool = False
    """Use the chat endpoint even if the server completes raw text."""
    concurrency: Few = 4
    """Requests to a server under way at once."""
    max_requests: Annotated[int, Field(ge=0, le=MOST_ROWS)] | None = None
    """Most requests to pay for."""
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    """Most tokens of prompts and answers to pay for."""

    @model_validator(mode="after")
    def _check_together(self) -> "GenerateSettings":
        """Refuse settings that exclude each other."""
        if self.beams > 1 and (self.samples > 1 or (self.temperature or 0) > 0 or self.top_p < 1):
            raise ValueError("--beams finds the likeliest answer and goes with no samples: leave one of them out")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"--samples {self.samples} at --temperature 0 are all the same answer: give one above 0")
        if self.top_p < 1 and self.heat == 0:
            raise ValueError("--top-p is for samples: give --samples or --temperature, too")
        unused = [name for name in (_LOCAL_ONLY if self.served else _SERVED_ONLY) if name in self.given]
        if unused:
            kind = "served" if self.served else "local"
            raise ValueError(f"{_option(unused[0])} does not apply to a {kind} teacher: leave it out")
        try:
            parse_filters(self.filters)
            if self.best_of is not None:
                check_best_of(self.best_of)
            if self.language:
                language_code(self.language, "--language")
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def given(self) -> dict[str, Any]:
        """Settings that differ from their defaults."""
        return {name: value for name, value in self if value != type(self).model_fields[name].default}

    @property
    def served(self) -> bool:
        """True if the teacher is behind an API."""
        return is_served(self.teacher)

    @property
    def heat(self) -> float:
        """Temperature of samples; 0 for the likeliest token each time."""
        return float(self.samples > 1) if self.temperature is None else self.temperature

    @property
    def filters(self) -> tuple[str, ...]:
        """Expressions of all filters of answers."""
        return self.keep if self.max_wer is None else (*self.keep, f"{OF_TRANSCRIPTS}<={self.max_wer:.15g}")

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures by which answers are selected."""
        filters, _ = parse_filters(self.filters)
        return (*(each.name for each in filters), *(() if self.best_of is None else (self.best_of,)))

    @property
    def source_length(self) -> int:
        """Longest source of an encoder-decoder, in tokens."""
        defaults = task_defaults(self.task).get("data", {})
        return self.max_length or DataSettings(task=(self.task,), **defaults).max_length

    @property
    def command(self) -> str:
        """The command with these settings, on as many ranks."""
        words = [*program().split(), "generate"]
        for name, value in self:
            if name not in self.given:
                continue
            for one in value if isinstance(value, tuple) else [value]:
                words += [_option(name)] if one is True else [_option(name), str(one)]
        return shlex.join(words)


def _option(name: str) -> str:
    """Return the option of a field."""
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def build_settings(values: Mapping[str, Any]) -> GenerateSettings:
    """Validate settings by name.

    Raises:
        UsageError: the first that is not accepted, by its option.
    """
    try:
        return GenerateSettings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if not first["loc"]:
            raise UsageError(message) from None
        given = shorten(repr(first["input"]), 80)
        raise UsageError(f"{_option(str(first['loc'][0]))} {given}: {message}") from None
