"""The objective section of a recipe: weights of loss terms, their balance and schedules, and the arms of ablations."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kdalign.errors import did_you_mean
from kdalign.recipe.schedules import MOST_WEIGHT, Schedule, check_schedule, schedule_of
from kdalign.recipe.sections import Divergence, Section, Temperature, Weight, check_plain
from kdalign.recipe.terms import (
    ALIGNING_KEYS,
    ANSWER_TERMS,
    FIRST_KEYS,
    TEACHERLESS_KEYS,
    TERM_FACTS,
    TERM_KEYS,
    VARIANCES,
)


class ObjectiveWeights(Section):
    """L = hard CE + alpha L_soft + beta L_feat + gamma L_dist + delta L_attn (arXiv:2412.19449)."""

    hard: Weight = 0.3
    """Weight of the cross-entropy with the labels."""
    alpha: Weight = 0.7
    """Weight of the divergence from the teacher's soft targets."""
    beta: Weight = 1.0
    """Weight of the cosine distance between features of paired layers."""
    gamma: Weight = 1.0
    """Weight of the Euclidean distance between features of paired layers."""
    delta: Weight = 1.0
    """Weight of the distance between attention maps of paired layers."""
    embeddings: Weight = 0.0
    """Weight of the cosine distance between the embeddings, the input of the first layers; worth a try if many layers
    are cut."""
    relations: Weight = 0.0
    """Weight of the KL divergence between relations of positions by their values (or also queries and keys); widths
    and heads may differ."""
    masked_lm: Weight = 0.0
    """Weight of masked-language-model cross-entropy (15 % of the tokens) for a student that classifies, with a head
    that is not exported; costs about one more forward and backward pass of the student."""
    temperature: Temperature = 2.0
    """Temperature of both distributions in the soft-target terms."""
    divergence: Divergence = "forward"
    """Divergence between the student's distributions and the teacher's."""
    standardise: bool = False
    """Standardise both models' class logits to mean 0 and standard deviation 1 before they are compared."""
    blank_frames: float = Field(1.0, ge=0, le=1)
    """Weight, in the soft targets of a CTC model, of frames of which its teacher says that they have no label (the
    blank) with a probability above 0.95: 1 counts all frames alike, 0 leaves these out."""
    terms: Mapping[str, Mapping[str, Any]] = {}
    """Further terms by name, built in or your own (``file.py:Name``): a weight each, or ``weight`` and options."""
    schedule: Mapping[str, Mapping[str, Any]] = {}
    """Schedules of ``temperature`` or of a weight, by its key or its term's name: ``to`` (final value), ``shape``
    (linear, cosine, steps or constant), ``from`` and ``until`` (shares of the steps), ``steps`` (number of jumps)."""
    balance: Literal["static", "size", "uncertainty", "pace"] = "static"
    """Factors on the weights during training: none (``static``), by each term's running size (``size``), learned
    (``uncertainty``), or larger for terms that fall more slowly (``pace``)."""
    align_first: float = Field(0.0, ge=0, lt=1)
    """Share of the steps in which only layers are aligned (and masked tokens predicted); after it only outputs count:
    ``hard``, ``alpha``, and of the further terms ``logit-mse``, ``dkd`` and ``dist``."""

    @field_validator("terms", mode="before")
    @classmethod
    def _with_weights(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("terms takes names, each with its weight, such as {pkd: 10}")
        return {str(name): _with_weight(str(name), given) for name, given in value.items()}

    @field_validator("schedule", mode="before")
    @classmethod
    def _as_changes(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("schedule takes keys with what they go to, such as {alpha: {to: 0}}")
        return {
            str(key): check_schedule(
                str(key), {k: _number(v) for k, v in given.items()} if isinstance(given, Mapping) else given
            )
            for key, given in value.items()
        }

    @model_validator(mode="after")
    def _scheduled_keys_are_there(self) -> "ObjectiveWeights":
        known = ["temperature", *TERM_KEYS, *self.terms]
        for key, change in self.schedule.items():
            if key not in known:
                near = did_you_mean(key, known)
                raise ValueError(f"schedule of {key!r}: no such weight{near} (accepted: {', '.join(known)})")
            if key == "temperature" and not (self.built.alpha or {"dkd", "dist"} & self.built.further.keys()):
                raise ValueError("schedule of temperature: it softens alpha, dkd and dist, and none of them is in it")
            aligns = key in FIRST_KEYS or (key in self.terms and key not in ANSWER_TERMS)
            if self.align_first and aligns and change["from"] >= self.align_first:
                raise ValueError(
                    f"schedule of {key}: layers are aligned in the first {self.align_first:g} of the steps "
                    f"(align_first); from={change['from']:g} must come earlier"
                )
            if self.align_first and not aligns and change.get("until", 1.0) <= self.align_first:
                raise ValueError(
                    f"schedule of {key}: answers count after the first {self.align_first:g} of the steps "
                    f"(align_first); until={change['until']:g} must come later"
                )
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectiveWeights":
        built = self.built
        if built.hard == 0 and not self.needs_teacher:
            alone = "masked_lm teaches no classes" if built.masked_lm else "every weight is 0"
            raise ValueError(f"{alone}: there is nothing to learn from")
        answering = built.hard + built.alpha > 0 or any(name in ANSWER_TERMS for name in built.further)
        if self.align_first and not (answering and built.aligning):
            aligning = ", ".join(ALIGNING_KEYS)
            raise ValueError(f"align_first needs one of {aligning} for its first part, hard or alpha for its second")
        return self

    @property
    def stages(self) -> tuple[tuple[float, "ObjectiveWeights"], ...]:
        """Stages in order: the share of the steps after which each begins, and its objective."""
        if not self.align_first:
            return ((0.0, self),)
        answers = {name: given for name, given in self.terms.items() if name in ANSWER_TERMS}
        layers = {name: given for name, given in self.terms.items() if name not in answers}
        of_layers = {key: each for key, each in self.schedule.items() if key in FIRST_KEYS or key in layers}
        of_answers = {key: each for key, each in self.schedule.items() if key not in of_layers}
        aligning = self.model_copy(update={"hard": 0.0, "alpha": 0.0, "terms": layers, "schedule": of_layers})
        none = dict.fromkeys(FIRST_KEYS, 0.0)
        answering = self.model_copy(update={**none, "terms": answers, "schedule": of_answers})
        return (0.0, aligning), (self.align_first, answering)

    @property
    def moving(self) -> dict[str, Schedule]:
        """Schedules by key."""
        starts = {"temperature": self.temperature} | {key: getattr(self, key) for key in TERM_KEYS}
        starts |= {name: given["weight"] for name, given in self.terms.items()}
        return {key: schedule_of(starts[key], change) for key, change in self.schedule.items()}

    @property
    def built(self) -> "ObjectiveWeights":
        """The objective for building terms: without schedules, and weights that rise from 0 at their final value."""
        if not self.schedule:
            return self
        risen = {key: each.to for key, each in self.moving.items() if each.start == 0}
        terms = {name: {**given, "weight": risen.get(name, given["weight"])} for name, given in self.terms.items()}
        own = {key: value for key, value in risen.items() if key in TERM_KEYS}
        return self.model_copy(update={**own, "terms": terms, "schedule": {}})

    @property
    def further(self) -> dict[str, float]:
        """Weights of further terms, without those of weight 0."""
        return {name: given["weight"] for name, given in self.terms.items() if given["weight"] > 0}

    @property
    def aligning(self) -> bool:
        """True if a term compares layers."""
        further = any(name not in ANSWER_TERMS for name in self.further)
        return further or any(getattr(self, key) > 0 for key in ALIGNING_KEYS)

    @property
    def uses_variances(self) -> bool:
        """True if a term divides by the teacher's variances, or is the user's own and may."""
        built = self.built
        units = [TERM_FACTS[name].unit if name in TERM_FACTS else VARIANCES for name in built.further]
        return built.gamma > 0 or VARIANCES in units

    @property
    def weights(self) -> dict[str, float]:
        """Initial weight of each term, by its key, or by its name for further terms."""
        return {key: getattr(self, key) for key in TERM_KEYS} | self.further

    @property
    def needs_teacher(self) -> bool:
        """True if a term needs the teacher."""
        return any(weight > 0 for key, weight in self.built.weights.items() if key not in TEACHERLESS_KEYS)

    @property
    def learns_without_labels(self) -> bool:
        """True if in every stage a term can use text without labels."""
        return all(stage.needs_teacher or stage.built.masked_lm > 0 for _, stage in self.stages)


def _with_weight(name: str, given: object) -> dict[str, Any]:
    options = {"weight": 1.0, **given} if isinstance(given, Mapping) else {"weight": given}
    options = {str(key): _number(value) for key, value in options.items()}
    check_plain(options, f"term {name!r}")
    weight = options["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MOST_WEIGHT:
        raise ValueError(
            f"term {name!r} takes a weight that is not negative and at most {MOST_WEIGHT:,.0f}; given {weight!r}"
        )
    return options


def _number(value: object) -> object:
    """Convert numbers that YAML 1.1 reads as text, such as 1e-4; leave other values alone."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


_UNALIGNED: Mapping[str, Any] = {**dict.fromkeys(ALIGNING_KEYS, 0.0), "terms": {}, "schedule": {}, "align_first": 0.0}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "labels": {"hard": 1.0, "alpha": 0.0, "masked_lm": 0.0, **_UNALIGNED},
    "soft": _UNALIGNED,
    "align": {"hard": 1.0, "alpha": 0.0, "align_first": 0.5, "schedule": {}},
    "joint": {},
}
"""Arms of an ablation, by their changes to the recipe's objective: hard labels only; hard labels and soft targets;
layers aligned for the first half of the steps and hard labels for the second; all terms at once."""
