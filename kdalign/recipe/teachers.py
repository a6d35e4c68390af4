"""Sections of a recipe on teachers: a cache of their outputs, servers, several at once, and the student's own texts."""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from kdalign.recipe.schedules import MOST_TEMPERATURE, percent
from kdalign.recipe.sections import (
    LONGEST_INPUT,
    MOST_ROWS,
    MOST_STEPS,
    MOST_TOKENS,
    Divergence,
    Section,
    Share,
    Steps,
    Weight,
)

AUTO_CACHE = "auto"
"""Folder of a cache that is named by all that decides its numbers."""


class CacheSettings(Section):
    """Cache of the teacher's outputs."""

    folder: str | None = None
    """Folder of kept outputs, which is built or extended before the first step, or ``auto`` for one in kdalign's cache
    that is named by all that decides the numbers. The teacher computes in every step when left out."""
    keep: tuple[str, ...] = ()
    """Outputs to keep in addition to those that the terms ask for, such as ``tokens:2`` or ``hidden:encoder.3``."""
    top_k: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Number of likeliest tokens that are kept of a distribution, with all others as one; chosen by ``tail`` when left
    out."""
    tail: float = Field(0.1, gt=0, lt=1)
    """Largest mean probability of all tokens that are not kept one by one: the smallest of 8, 16, 32, 64, 128 and 256
    that leaves no more on a few rows is taken."""
    logs: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format of the tokens' log-probabilities."""
    states: Literal["bf16", "int8", "fp32"] = "bf16"
    """Number format of features; ``int8`` has a scale for each position. Queries, keys, values and attention maps are
    in fp16, or in fp32 with ``fp32``."""

    @field_validator("keep", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value


class OnPolicySettings(Section):
    """Steps on texts that the student writes itself (GKD, Agarwal et al. 2024, arXiv:2306.13649)."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of the optimizer steps, spread evenly, that train on the student's own continuations of the rows' prompts
    in place of the rows; they have no labels, so ``hard`` does not count there."""
    after: Share = 0.0
    """Share of the run before the first step that may be on-policy; ``share`` is of the steps after it."""
    divergence: Divergence | None = None
    """Divergence from the teacher on these steps; ``objective.divergence`` when left out."""
    max_new_tokens: int = Field(128, ge=1, le=LONGEST_INPUT)
    """Most tokens of a sample; it ends earlier with an end token."""
    prompt_tokens: int = Field(32, ge=1, le=LONGEST_INPUT)
    """Most tokens of the beginning that is continued, for texts without a prompt (``lm``): the longest document in
    the row, at most half of it."""
    temperature: float = Field(1.0, gt=0, le=MOST_TEMPERATURE)
    """Temperature of sampling; at 1 texts are drawn from the student's own distribution."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability from which tokens are drawn, the likeliest ones."""
    patience: Steps | None = None
    """On-policy steps in a row with an alarm after which the run stops; it never does when left out."""

    def __str__(self) -> str:
        after = f" after the first {percent(self.after)}" if self.after else ""
        drawn = f"temperature {self.temperature:g}" + (f", top-p {self.top_p:g}" if self.top_p < 1 else "")
        most = f"at most {self.max_new_tokens:,} new token{'s' * (self.max_new_tokens > 1)}"
        by = f"; divergence {self.divergence}" if self.divergence else ""
        return f"{percent(self.share)} of the steps{after} on the student's own texts, {most}, {drawn}{by}"


class ServedTeacherSettings(Section):
    """A teacher behind an OpenAI-compatible API (``openai:NAME``), which is asked about each training row once."""

    base_url: str | None = None
    """URL of the API, mostly with ``/v1`` at its end."""
    top_k: int = Field(20, ge=1, le=1000)
    """Number of likeliest tokens asked for at each position; all others count together as one."""
    check_teacher: str | None = None
    """Local checkpoint of the same model (hub id or folder): the server's numbers are compared with its own on three
    rows before training."""
    score: bool = True
    """Ask about the watched and the reported rows as well, for the teacher's own scores and its agreement."""
    concurrency: int = Field(4, ge=1, le=1000)
    """Requests under way at once."""
    timeout: float = Field(120.0, gt=0, le=86_400)
    """Seconds to wait for one answer."""
    retries: int = Field(5, ge=0, le=100)
    """Retries of a request after no answer, a full server or a server error."""
    max_requests: int | None = Field(None, ge=0, le=MOST_ROWS)
    """Budget of requests of one run; answers are kept, and a larger budget resumes."""
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    """Budget of tokens of prompts and answers of one run, as the server counts them."""


SERVED_LIMITS = ("check_teacher", "concurrency", "timeout", "retries", "max_requests", "max_tokens")
"""Keys of ``served`` that change no number of a run."""


class TeachersSettings(Section):
    """Several teachers (``--teacher`` more than once), and the way in which their answers are combined."""

    combine: Literal["mean", "confidence"] = "mean"
    """Mixture of the teachers' distributions: their mean, weighted by ``weights``, or in each row by how certain each
    teacher is (``confidence``)."""
    weights: tuple[Weight, ...] = ()
    """Weight of each teacher, in the order of ``--teacher``, in any positive scale; equal when left out."""
    by: str | None = None
    """Column of the data that says whose row it is: each row is taught by its own teacher alone."""
    sources: Mapping[str, str] = {}
    """Teacher of each value of that column, by its number from 1 or its name, such as ``{news: 1, mail: 2}``; when left
    out, the values are such numbers or names."""

    @field_validator("sources", mode="before")
    @classmethod
    def _as_words(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("sources takes values of a column, each with a teacher, such as {news: 1, mail: 2}")
        return {str(key): str(teacher) for key, teacher in value.items()}

    @model_validator(mode="after")
    def _check_one_way(self) -> "TeachersSettings":
        given = [
            name
            for name, here in (
                ("teachers.combine=confidence", self.combine != "mean"),
                ("teachers.weights", bool(self.weights)),
                ("teachers.by", self.by is not None),
            )
            if here
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are ways to combine teachers: give one of them")
        if self.sources and self.by is None:
            raise ValueError("teachers.sources says who teaches which value of a column: give teachers.by, too")
        if self.weights and not 0 < sum(self.weights) < math.inf:
            raise ValueError(f"teachers.weights must have one above 0; given {self.weights}")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights in sum 1; empty if they are equal."""
        return tuple(weight / sum(self.weights) for weight in self.weights)
