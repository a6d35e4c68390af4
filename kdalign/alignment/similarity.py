r"""Similarity of two models' layers (CKA), and the layer maps that follow from it: monotone path, earth mover's flow.

Features are (tokens, width) matrices over the same real tokens without special tokens, whose few huge rows would make
unrelated features look alike.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

LEAST_TOKENS = 4
"""Least number of tokens of an unbiased estimate."""


def unbiased_hsic(first: Float[Tensor, "tokens width"], second: Float[Tensor, "tokens other_width"]) -> float:
    r"""Unbiased Hilbert-Schmidt independence criterion of two features with linear kernels.

    .. math:: \frac{1}{n(n-3)} \Big( \mathrm{tr}(\tilde K \tilde L)
        + \frac{1^\top \tilde K 1 \; 1^\top \tilde L 1}{(n-1)(n-2)} - \frac{2}{n-2} 1^\top \tilde K \tilde L 1 \Big)

    with :math:`K = X X^\top`, :math:`L = Y Y^\top` and their diagonals set to 0 (Song et al. 2012, JMLR 13, eq. 5).
    No (tokens, tokens) matrix is made: the cost is O(tokens x width x other width), in float64.

    Raises:
        ValueError: fewer than four tokens.
    """
    n = len(first)
    if n < LEAST_TOKENS:
        raise ValueError(f"{n} tokens are too few: {LEAST_TOKENS} or more are needed")
    # The estimate does not depend on the means; without them the sums below lose no digits.
    x, y = (each.double() - each.double().mean(dim=0) for each in (first, second))
    own_x, own_y = x.square().sum(dim=1), y.square().sum(dim=1)
    rows_x, rows_y = x @ x.sum(dim=0) - own_x, y @ y.sum(dim=0) - own_y
    trace = (x.T @ y).square().sum() - own_x @ own_y
    both = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return float((trace + both - 2 / (n - 2) * (rows_x @ rows_y)) / (n * (n - 3)))


def cka(first: Float[Tensor, "tokens width"], second: Float[Tensor, "tokens other_width"]) -> float:
    r"""Debiased linear centred kernel alignment: 1 for features that are equal up to rotation and scale.

    .. math:: \frac{HSIC(X, Y)}{\sqrt{HSIC(X, X) \, HSIC(Y, Y)}}

    Kornblith et al. 2019, arXiv:1905.00414, section 3, with the estimate of ``unbiased_hsic`` (Nguyen et al. 2020,
    arXiv:2010.15327, section 2): unrelated features are near 0 however wide they are, on either side. Features without
    any spread have 0.
    """
    own = unbiased_hsic(first, first) * unbiased_hsic(second, second)
    return unbiased_hsic(first, second) / math.sqrt(own) if own > 0 else 0.0


def similarities(
    students: Sequence[Float[Tensor, "tokens width"]], teachers: Sequence[Float[Tensor, "tokens other_width"]]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """CKA of every student layer with every teacher layer: (student layers, teacher layers)."""
    own = [[unbiased_hsic(each, each) for each in layers] for layers in (students, teachers)]
    matrix = np.zeros((len(students), len(teachers)))
    for row, ours in enumerate(students):
        for column, theirs in enumerate(teachers):
            scale = own[0][row] * own[1][column]
            matrix[row, column] = unbiased_hsic(ours, theirs) / math.sqrt(scale) if scale > 0 else 0.0
    return matrix


def monotone_path(alike: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[int]:
    """Map each student layer to a teacher layer, in order, with the largest sum of similarities.

    Teacher layers rise from one student layer to the next; if the student has more layers than its teacher, a teacher
    layer may repeat. Ties go to the lowest layers. By dynamic programming, O(student x teacher layers).

    Args:
        alike: (student layers, teacher layers).
    """
    students, teachers = alike.shape
    step = 1 if students <= teachers else 0
    best = np.full((students, teachers), -np.inf)
    came = np.zeros((students, teachers), dtype=int)
    best[0] = alike[0]
    for row in range(1, students):
        for column in range(step, teachers):
            before = best[row - 1, : column - step + 1]
            came[row, column] = int(before.argmax())
            best[row, column] = before.max() + alike[row, column]
    path = [int(best[-1].argmax())]
    for row in range(students - 1, 0, -1):
        path.append(int(came[row, path[-1]]))
    return path[::-1]


def transport(
    cost: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    r"""Cheapest flow between layers of equal mass: the earth mover's distance of BERT-EMD.

    .. math:: \min_{F \ge 0} \sum_{st} F_{st} c_{st}, \quad \sum_t F_{st} = 1/S, \quad \sum_s F_{st} = 1/T

    Li et al. 2020, arXiv:2010.06133, section 3.2, with equal mass for every layer; many teacher layers may teach one
    student layer. Solved by scipy's linear programming.

    Args:
        cost: (student layers, teacher layers).

    Returns:
        F, (student layers, teacher layers), which sums to 1.
    """
    from scipy.optimize import linprog

    students, teachers = cost.shape
    out_of = np.kron(np.eye(students), np.ones((1, teachers)))
    into = np.kron(np.ones((1, students)), np.eye(teachers))
    shares = np.concatenate([np.full(students, 1 / students), np.full(teachers, 1 / teachers)])
    solved = linprog(cost.ravel(), A_eq=np.vstack([out_of, into]), b_eq=shares, method="highs-ds")
    assert solved.success, solved.message
    flow = np.where(solved.x < 1e-9, 0.0, solved.x).reshape(cost.shape)
    found: np.ndarray[tuple[int, int], np.dtype[np.float64]] = flow / flow.sum()
    return found
