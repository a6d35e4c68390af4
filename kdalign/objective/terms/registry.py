"""Registry of further terms: shipped ones by name, and a user's own.

Each is built by a function of a ``TermContext`` and its own options, which returns one term, or one for each stack.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, validate_call

from kdalign.alignment.plan import Plan
from kdalign.errors import UsageError, unknown
from kdalign.models.architecture import Layer
from kdalign.objective import losses
from kdalign.objective.terms.base import LayerPairs, LossTerm, Unit
from kdalign.objective.terms.features import AttendedEuclid, AttentionMaps, PatientKD, RelativeMSE
from kdalign.objective.terms.logits import DecoupledKD, LogitMSE
from kdalign.objective.terms.relational import Contrastive, ContrastiveOptions, CorrelationDistance, Over, RowWise
from kdalign.recipe.schedules import MOST_TEMPERATURE, MOST_WEIGHT
from kdalign.registry import resolve


@dataclass(frozen=True)
class TermContext:
    """Task and plan that a term is built for.

    Attributes:
        plan: None without a teacher.
        places: compared layer pairs by the teacher's stack.
        classes: number of classes of the task; 1 for a score, 0 for tokens and embeddings.
        temperature: the recipe's temperature.
        endings: endings of the names of terms of each stack, where there are several; its name if left out.
    """

    plan: Plan | None
    places: Mapping[str, LayerPairs]
    classes: int
    temperature: float
    endings: Mapping[str, str] = field(default_factory=dict)

    def variances(self, place: LayerPairs) -> dict[Layer, float]:
        """Return the variances of the teacher layers of these pairs; empty before calibration."""
        assert self.plan is not None, "layers are compared by a plan"
        return {theirs: self.plan.variance(theirs) for _, theirs, _ in place.pairs if self.plan.calibrated}

    def widths(self, stack: str) -> list[int]:
        """Return the width at which the features of each pair of a stack's layers are compared."""
        assert self.plan is not None, "layers are compared by a plan"
        theirs, ours = next(pair for pair in self.plan.stacks if pair[0].name == stack)
        of_teacher = self.plan.style.side == "student"
        return [
            theirs.width_of(their.number) if of_teacher else ours.width_of(our.number)
            for our, their, _ in self.places[stack].pairs
        ]


Made = LossTerm | Mapping[str, LossTerm]
"""A term, or one for each stack, by its name."""
Maker = Callable[..., Made]
Above0 = Annotated[float, Field(ge=1 / MOST_TEMPERATURE, le=MOST_TEMPERATURE)]
NotNegative = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
Rows = Annotated[int, Field(ge=0, le=1_000_000)]
Drawn = Annotated[int, Field(ge=1, le=10_000)]


def build_terms(named: Mapping[str, Mapping[str, Any]], context: TermContext) -> Iterator[tuple[str, float, LossTerm]]:
    """Build the terms that a recipe names, with their weights; with several stacks, names end as the context says.

    Args:
        named: a ``weight`` and the term's own options, by name.
        context: task and plan.

    Raises:
        UsageError: an unknown term or option, or a term that does not fit, with the reason.
    """
    for name, given in named.items():
        options = {key: value for key, value in given.items() if key != "weight"}
        build = resolve(name, TERMS, "term")
        if given["weight"] == 0:
            continue
        if name in TERMS:
            _check_options(name, options)
            build = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(build)
        built = _call(name, build, context, options)
        terms: Mapping[str, LossTerm] = built if isinstance(built, Mapping) else {"": built}
        for stack, term in terms.items():
            if not isinstance(getattr(term, "needs", None), frozenset) or not isinstance(term.unit, Unit):
                raise UsageError(f"term {name!r}: {term!r} has no 'needs' (a frozenset of Signal) and 'unit' (a Unit)")
            ending = context.endings.get(stack, f" {stack}") if len(terms) > 1 else ""
            yield f"{name}{ending}", given["weight"], term


def _call(name: str, build: Maker, context: TermContext, options: Mapping[str, Any]) -> Made:
    """Call a term's function or class with layer weights of its own; its errors name the term."""
    places = {stack: place.of_one_term() for stack, place in context.places.items()}
    try:
        return build(replace(context, places=places), **options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"term {name!r}: {first['loc'][0]}={first['input']!r}: {first['msg']}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"term {name!r}: {str(error).rpartition('() ')[2]}") from None
    except UsageError as error:
        raise UsageError(f"term {name!r} {error}") from None


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse unknown options of a shipped term, and ``true`` for a number."""
    known = dict(list(inspect.signature(TERMS[name]).parameters.items())[1:])
    for key, value in options.items():
        if key not in known:
            raise unknown(f"option of term {name!r}:", key, list(known) or ["none but its weight"])
        if isinstance(value, bool) and not isinstance(known[key].default, bool):
            raise UsageError(f"term {name!r}: {key}={value!r} is not a number")


def _need_layers(context: TermContext) -> Mapping[str, LayerPairs]:
    if not context.places:
        raise UsageError("compares layers with a teacher's, and there is none")
    return context.places


def _need_classes(context: TermContext, least: int = 2, why: str = "") -> None:
    if context.classes < 2:
        raise UsageError("compares the logits of classes, and this task has none")
    if context.classes < least:
        raise UsageError(f"needs {least} classes or more: {why}")


def _logit_mse(context: TermContext) -> Made:
    _need_classes(context)
    return LogitMSE()


def _dkd(context: TermContext, temperature: Above0 | None = None, other: NotNegative = 8.0) -> Made:
    _need_classes(context, 3, "of two, there is one other than the label, and nothing to tell apart among the others")
    return DecoupledKD(temperature or context.temperature, other)


def _dist(context: TermContext, temperature: Above0 | None = None) -> Made:
    _need_classes(context, 3, "of two numbers that sum to 1 the correlation is 1 or -1, whatever the student says")
    return CorrelationDistance(temperature or context.temperature)


def _nmse(context: TermContext) -> Made:
    return {stack: RelativeMSE(place) for stack, place in _need_layers(context).items()}


def _pkd(context: TermContext) -> Made:
    if not context.classes:
        raise UsageError("compares the position that sums up a text for a class or a score, and this task has none")
    return {stack: PatientKD(place) for stack, place in _need_layers(context).items() if not place.reads_target}


def _attended_euclid(context: TermContext) -> Made:
    places = _need_layers(context)
    return {stack: AttendedEuclid(place, context.variances(place)) for stack, place in places.items()}


def _attention_kl(context: TermContext) -> Made:
    places, plan = _need_layers(context), context.plan
    assert plan is not None, "there are places"
    return {stack: AttentionMaps(place, plan.heads == "mean", divergence=True) for stack, place in places.items()}


def _row_wise(loss: Callable[..., Any], over: Over) -> Maker:
    def build(context: TermContext) -> Made:
        return {stack: RowWise(place, loss, over) for stack, place in _need_layers(context).items()}

    return build


def _info_nce(
    context: TermContext,
    temperature: Above0 = 0.07,
    over: Over = "texts",
    queue: Rows = 0,
    supervised: bool = False,
    positives: Literal["teacher", "dropout"] = "teacher",
) -> Made:
    if supervised and context.classes < 2:
        raise UsageError("takes inputs of one class as alike, and this task has none")
    if supervised and queue:
        raise UsageError("takes supervised or a queue, whose rows have no labels, not both")
    options = ContrastiveOptions(temperature, over, supervised, queue, again=positives == "dropout")
    return _contrastive(context, options)


def _crd(context: TermContext, temperature: Above0 = 0.07, queue: Rows = 4096, negatives: Drawn = 100) -> Made:
    return _contrastive(context, ContrastiveOptions(temperature, queue=queue, negatives=negatives))


def _contrastive(context: TermContext, options: ContrastiveOptions) -> Made:
    return {stack: Contrastive(place, context.widths(stack), options) for stack, place in _need_layers(context).items()}


TERMS: Mapping[str, Maker] = {
    "logit-mse": _logit_mse,
    "dkd": _dkd,
    "dist": _dist,
    "nmse": _nmse,
    "pkd": _pkd,
    "attended-euclid": _attended_euclid,
    "attention-kl": _attention_kl,
    "cka": _row_wise(losses.linear_cka_distance, "tokens"),
    "rkd-distance": _row_wise(losses.relational_distance, "texts"),
    "rkd-angle": _row_wise(losses.relational_angle, "texts"),
    "similarity-preserving": _row_wise(losses.similarity_preserving, "texts"),
    "info-nce": _info_nce,
    "crd": _crd,
}
"""Shipped terms, by name."""
