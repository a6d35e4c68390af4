"""Each further term gives what its method says of the captured signals, worked out here once more in float64.

With unequal lambda_l, a text that does not count, texts without labels, padding, and options beside the defaults.
"""

import math
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.plan import ProjectionStyle
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import collate
from kdalign.models.architecture import Layer, describe
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support.classifier_setting import examples
from support.terms import NONE
from support.tiny import tiny_classifier

CPU = torch.device("cpu")
SHARES = (0.2, 0.8)
ORDER = [5, 0, 7, 2, 6, 1, 3, 4]
TEMPERATURE = 3.0
PAIRS = [(Layer("encoder", 0), Layer("encoder", 2)), (Layer("encoder", 1), Layer("encoder", 1))]
STUDENTS_WIDTH = 24


class Scene:
    """A narrower student of 2 layers beside a teacher of 4, compared by one term; and what a batch leaves behind.

    Args:
        name: of the term.
        classes: of the task.
        side: whose features are projected.
        options: of the term.
    """

    def __init__(self, name, classes=2, side="student", **options):
        silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": classes}
        order = tuple(range(classes))
        self.teacher = ComputedTeacher(tiny_classifier("bert", 4, 32, seed=1, **silent), order, torch.float32, CPU)
        student = tiny_classifier("bert", 2, STUDENTS_WIDTH, seed=2, **silent)
        architectures = describe(self.teacher.model.config), describe(student.config)
        style = ProjectionStyle(kind="orthogonal" if side == "teacher" else "linear", side=side)
        plan = propose(*architectures, "0:2 1:1", options=PlanOptions(weights=SHARES, style=style))
        self.data = examples()
        plan = calibrate(plan, self.teacher, [collate(self.data, range(8))], CPU)
        self.variances = {theirs: plan.variance(theirs) for _, theirs in PAIRS}
        weights = Weights(**NONE, temperature=TEMPERATURE, terms={name: {"weight": 1, **options}})
        self.objective = build_classification_objective(weights, plan, False, classes)
        self.learner = Learner(student, Projections(plan.projections, 0), plan, [self.objective], order, False)
        self.name, self.term = name, self.objective.terms[name][1]

    def view(self, rows=ORDER, counted=(0, 1, 3, 4, 5, 6, 7), labels=(1, 0, 1, 1, 0, 0, -100, -100), half=False):
        """What a padded batch leaves behind; ``half`` as from bfloat16."""
        labels, counts = torch.tensor(labels), torch.tensor([number in counted for number in range(len(rows))])
        batch = replace(collate(self.data, rows, width=14), labels=labels, labelled=labels >= 0, counted=counts)
        with torch.no_grad():
            taught = self.teacher(batch, self.learner.wanted_of_teacher)
            student = self.learner(batch.inputs, taught)
        lengths = torch.linspace(0.5, 2, 14)[:, None]  # layer norms would leave all features of one length
        for kept in (taught.hidden, student.targets):
            kept |= {key: each * lengths for key, each in kept.items()}
        return TermInputs(*(_half(each) if half else each for each in (student, taught)), batch)

    def part(self, view):
        """What the objective gives."""
        return float(self.objective(view, count_units([view.batch])).parts[self.name])


def _half(signals):
    kept = {name: {key: each.bfloat16() for key, each in getattr(signals, name).items()} for name in KEPT}
    return replace(signals, logits=signals.logits.bfloat16(), **kept)


KEPT = ("hidden", "projected", "targets", "attention", "mixed", "maps")


def positions(view):
    """(text, position) of each token that counts."""
    return [
        (text, position)
        for text, position in product(*map(range, view.batch.real.shape))
        if view.batch.counted[text] and view.batch.inputs["attention_mask"][text, position]
    ]


def texts(view):
    return view.batch.counted.nonzero()[:, 0].tolist()


def features(view, pair):
    """The student's and the teacher's, as they are compared."""
    return view.student.projected[pair].double(), view.student.targets[pair].double()


def as_they_are(view, pair):
    return view.student.hidden[pair[0]].double(), view.teacher.hidden[pair[1]].double()


def means(view, both):
    """(texts that count, width): the mean of each over its own tokens."""
    sizes = [int(view.batch.inputs["attention_mask"][text].sum()) for text in texts(view)]
    return [torch.stack([x[text, :size].mean(0) for text, size in zip(texts(view), sizes, strict=True)]) for x in both]


def over_pairs(of_pair):
    """A function of a scene and a view: the sum over pairs by lambda_l."""
    return lambda scene, view: sum(
        share * float(of_pair(scene, view, pair)) for share, pair in zip(SHARES, PAIRS, strict=True)
    )


@over_pairs
def nmse(scene, view, pair):
    ours, theirs = features(view, pair)
    found = [(ours[at] - theirs[at]).square().sum() / theirs[at].square().sum() for at in positions(view)]
    return sum(found) / len(found)


@over_pairs
def pkd(scene, view, pair):
    rows = zip(*(each[texts(view), 0] for each in features(view, pair)), strict=True)
    return sum((s / s.norm() - t / t.norm()).square().sum() for s, t in rows) / 7


@over_pairs
def attended_euclid(scene, view, pair):
    ours, theirs = features(view, pair)
    attention = view.teacher.attention[pair[1]].double()
    found = 0.0
    for text, position in positions(view):
        size = int(view.batch.inputs["attention_mask"][text].sum())
        received = attention[text, :, :size, position].sum() / 4
        apart = (ours[text, position] - theirs[text, position]).square().mean()
        found += received * apart / scene.variances[pair[1]]
    return found / len(positions(view))


@over_pairs
def attention_kl(scene, view, pair):
    ours, theirs = view.student.attention[pair[0]].double(), view.teacher.attention[pair[1]].double()
    found = 0.0
    for text, query in positions(view):
        size = int(view.batch.inputs["attention_mask"][text].sum())
        s, t = ours[text, :, query, :size], theirs[text, :, query, :size]
        found += (t * (t.log() - s.log())).sum() / 4
    return found / len(positions(view))


@over_pairs
def cka(scene, view, pair):
    x, y = (torch.stack([each[at] for at in positions(view)]) for each in as_they_are(view, pair))
    x, y = x @ x.T, y @ y.T
    middle = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    return 1 - (middle @ x @ middle * y).sum() / ((middle @ x @ middle).norm() * (middle @ y @ middle).norm())


def huber(x):
    return x.square() / 2 if abs(x) < 1 else abs(x) - 0.5


@over_pairs
def rkd_distance(scene, view, pair):
    apart = [torch.cdist(each, each) for each in means(view, as_they_are(view, pair))]
    n = len(apart[0])
    s, t = (each / (each.sum() / (n * (n - 1))) for each in apart)
    return sum(huber(s[i, j] - t[i, j]) for i in range(n) for j in range(n)) / (n * (n - 1))


@over_pairs
def rkd_angle(scene, view, pair):
    both = means(view, as_they_are(view, pair))
    n = len(both[0])

    def cosine(x, i, j, k):
        one, other = x[i] - x[j], x[k] - x[j]
        return one @ other / (one.norm() * other.norm())

    inner = [(i, j, k) for i, j, k in product(range(n), repeat=3) if j not in (i, k)]
    return sum(huber(cosine(both[0], *each) - cosine(both[1], *each)) for each in inner) / n**3


@over_pairs
def similarity_preserving(scene, view, pair):
    s, t = (each @ each.T for each in means(view, as_they_are(view, pair)))
    rows = zip(s, t, strict=True)
    return sum((one / one.norm() - other / other.norm()).square().sum() for one, other in rows) / len(s) ** 2


def info_nce(temperature, of_tokens=False, alike=lambda labels, i, j: i == j):
    @over_pairs
    def of_pair(scene, view, pair):
        both = features(view, pair)
        if of_tokens:
            s, t = (torch.stack([each[at] for at in positions(view)]) for each in both)
            labels = [0] * len(s)
        else:
            s, t = means(view, both)
            labels = view.batch.labels[view.batch.counted].tolist()
        total = 0.0
        for i, row in enumerate(s):
            found = (torch.cosine_similarity(row[None], t) / temperature).log_softmax(0)
            right = [j for j in range(len(t)) if alike(labels, i, j)]
            total -= sum(found[j] for j in right) / len(right)
        return total / len(s)

    return of_pair


def same_label(labels, i, j):
    return i == j or labels[i] == labels[j] != -100


def logit_mse(scene, view):
    s, t = view.student.logits.double(), view.teacher.logits.double()
    return sum(float((s[i] - t[i]).square().sum() / 2) for i in texts(view)) / 7


def dkd(temperature, other):
    def of_view(scene, view):
        total, labelled = 0.0, [i for i in texts(view) if view.batch.labels[i] >= 0]
        for i in labelled:
            y = int(view.batch.labels[i])
            s, t = ((each[i].double() / temperature).softmax(0) for each in (view.student.logits, view.teacher.logits))
            rest = [c for c in range(3) if c != y]
            binary = t[y] * (t[y] / s[y]).log() + (1 - t[y]) * ((1 - t[y]) / (1 - s[y])).log()
            s, t = s[rest] / s[rest].sum(), t[rest] / t[rest].sum()
            total += temperature**2 * (binary + other * (t * (t / s).log()).sum())
        return float(total) / len(labelled)

    return of_view


def dist(temperature):
    def of_view(scene, view):
        s, t = (
            (each[texts(view)].double() / temperature).softmax(1) for each in (view.student.logits, view.teacher.logits)
        )
        rows = [1 - torch.corrcoef(torch.stack([s[i], t[i]]))[0, 1] for i in range(len(s))]
        columns = [1 - torch.corrcoef(torch.stack([s[:, c], t[:, c]]))[0, 1] for c in range(3)]
        return temperature**2 * float(sum(rows) / len(rows) + sum(columns) / 3)

    return of_view


CASES = {
    "logit-mse": ("logit-mse", {}, logit_mse),
    "dkd": ("dkd", {}, dkd(TEMPERATURE, 8)),
    "dkd of its own": ("dkd", {"temperature": 5, "other": 2}, dkd(5, 2)),
    "dist": ("dist", {}, dist(TEMPERATURE)),
    "dist of its own": ("dist", {"temperature": 5}, dist(5)),
    "nmse": ("nmse", {}, nmse),
    "pkd": ("pkd", {}, pkd),
    "attended-euclid": ("attended-euclid", {}, attended_euclid),
    "attention-kl": ("attention-kl", {}, attention_kl),
    "cka": ("cka", {}, cka),
    "rkd-distance": ("rkd-distance", {}, rkd_distance),
    "rkd-angle": ("rkd-angle", {}, rkd_angle),
    "similarity-preserving": ("similarity-preserving", {}, similarity_preserving),
    "info-nce": ("info-nce", {}, info_nce(0.07)),
    "info-nce of tokens": ("info-nce", {"temperature": 0.3, "over": "tokens"}, info_nce(0.3, of_tokens=True)),
    "info-nce of labels": ("info-nce", {"supervised": True, "temperature": 0.3}, info_nce(0.3, alike=same_label)),
}
OF_GROUPS = ("dist", "cka", "rkd-distance", "rkd-angle", "similarity-preserving", "info-nce")


@cache
def scene_of(case, **more):
    name, options, expected = CASES[case]
    classes = 3 if name in ("dkd", "dist") else 2
    return Scene(name, classes, **options, **more), expected


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_a_term_is_what_its_method_says_of_the_captured_signals(case, half):
    scene, expected = scene_of(case)
    view = scene.view(
        labels=(1, 0, 2, 1, 0, 0, -100, -100) if "dkd" in case else (1, 0, 1, 1, 0, 0, -100, -100), half=half
    )
    assert scene.part(view) == pytest.approx(expected(scene, view), rel=2e-5)
    assert expected(scene, view) > 1e-3


@pytest.mark.parametrize("case", ["nmse", "pkd", "info-nce"])
def test_a_term_compares_at_the_students_width_where_the_teacher_is_projected(case):
    scene, expected = scene_of(case, side="teacher")
    view = scene.view()
    assert {each.size(-1) for each in view.student.targets.values()} == {STUDENTS_WIDTH}
    assert scene.part(view) == pytest.approx(expected(scene, view), rel=2e-5)


@pytest.mark.parametrize("case", OF_GROUPS)
def test_three_rows_are_compared_and_two_are_none(case):
    scene, expected = scene_of(case)
    for rows in (3, 2):
        view = scene.view(counted=range(1 if case == "cka" else rows))
        if case == "cka":  # of tokens
            view.batch.real[0, rows:] = False
            view.batch.inputs["attention_mask"][0, rows:] = 0
        units = count_units([view.batch])
        assert units[Unit.TOKEN_GROUP if case == "cka" else Unit.GROUP] == (rows == 3)
        assert scene.part(view) == pytest.approx(expected(scene, view) if rows == 3 else 0, rel=1e-4)
        assert (scene.part(view) > 1e-3) == (rows == 3)


NEGATIVES = 10_000
"""So many that their mean is what is expected of them."""


class Drawn:
    """CRD as its expectation over what is drawn, with a queue of an earlier batch."""

    def __init__(self, side):
        self.scene = Scene("crd", side=side, temperature=0.5, queue=16, negatives=NEGATIVES)
        self.queued, self.levels = {pair: torch.empty(0) for pair in PAIRS}, {}
        self.numbers = []

    def view(self, rows, near):
        """With a student near its teacher's rows, so that a row's own is no wrong row like the others."""
        view = self.scene.view(rows=rows)
        student = view.student
        for pair in PAIRS:
            student.projected[pair] = student.targets[pair] + student.projected[pair] / near
        return view

    def remember(self, view):
        self.scene.objective.remember(count_units([view.batch]))
        self.numbers = view.batch.rows[view.batch.counted].tolist()
        self.queued = {pair: means(view, features(view, pair))[1] for pair in PAIRS}

    def cosines(self, view, pair):
        """Of each row its own and those of wrong rows."""
        s, t = means(view, features(view, pair))
        rows = view.batch.rows[view.batch.counted].tolist()
        for i, row in enumerate(s):
            others = [t[j] for j in range(len(t)) if j != i]
            others += [old for old, number in zip(self.queued[pair], self.numbers, strict=True) if number != rows[i]]
            yield torch.cosine_similarity(row, t[i], dim=0), torch.cosine_similarity(row[None], torch.stack(others))

    def expected(self, view):
        total = 0.0
        for share, pair in zip(SHARES, PAIRS, strict=True):
            found = [(own / 0.5, others / 0.5) for own, others in self.cosines(view, pair)]
            if pair not in self.levels:
                self.levels[pair] = torch.cat([others for _, others in found]).exp().mean().log()
            noise = NEGATIVES * self.levels[pair].exp()
            for own, others in found:
                right, wrong = own.exp() / (own.exp() + noise), others.exp() / (others.exp() + noise)
                total -= share * float(right.log() + NEGATIVES * (1 - wrong).log().mean()) / len(found)
        return total


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_crd_tells_a_row_from_any_other_inputs_and_keeps_the_level_of_the_first_group(side):
    drawn = Drawn(side)
    torch.manual_seed(0)
    first, second = drawn.view(ORDER, near=4), drawn.view([1, 4, 6, 3, 0, 2, 5, 7], near=1)
    for view in (first, second):
        assert drawn.scene.part(view) == pytest.approx(drawn.expected(view), rel=5e-4)
        drawn.remember(view)
    levels = drawn.scene.term.state_dict()["levels"]
    torch.testing.assert_close(levels, torch.stack([drawn.levels[pair] for pair in PAIRS]).float())


def test_the_queue_of_info_nce_has_the_width_at_which_layers_are_compared():
    for side, width in (("student", 32), ("teacher", STUDENTS_WIDTH)):
        scene = Scene("info-nce", side=side, queue=16)
        assert [tuple(scene.term.queue.rows(number).shape) for number in (0, 1)] == [(16, width)] * 2
        scene.part(scene.view())
        scene.objective.remember({Unit.GROUP: 1.0})
        assert math.isfinite(scene.part(scene.view()))
