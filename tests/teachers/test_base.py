"""The door: what each term asks of a teacher, and the refusal of one that cannot give it."""

import pytest

from kdalign.errors import UsageError
from kdalign.models.capture import Signal
from kdalign.objective.build import build_language_objective
from kdalign.objective.checks import check_teacher
from kdalign.recipe import ObjectiveWeights as Weights


class WritesOnly:
    """A teacher that gives tokens at temperature 1 and nothing else."""

    def __call__(self, batch, wanted):
        raise NotImplementedError

    def refusal(self, request):
        if request.signals - {Signal.TOKENS}:
            return f"needs {', '.join(sorted(request.signals))}"
        return None if request.temperature == 1 else f"is at temperature {request.temperature:g}"


def test_only_terms_that_compare_with_the_teacher_ask_it_for_something():
    objective = build_language_objective(Weights(hard=1.0, alpha=0.5, beta=0, gamma=0, delta=0, temperature=2.0), None)
    (request,) = objective.requests(())
    assert (request.term, request.signals, request.temperature) == ("soft", {Signal.TOKENS}, 2.0)


def test_a_refusal_names_the_term():
    objective = build_language_objective(Weights(hard=1.0, alpha=0.5, beta=0, gamma=0, delta=0, temperature=2.0), None)
    with pytest.raises(UsageError, match="term 'soft' is at temperature 2"):
        check_teacher(objective, WritesOnly(), None)
