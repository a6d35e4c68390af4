"""Projections of features and attention maps to the other model's width and heads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrize import is_parametrized

from kdalign.alignment.plan import HeadMix, ProjectionShape
from kdalign.models.architecture import Layer


class Projections(nn.Module):
    """Project features and mix attention heads to matching shapes, pair by pair; equal shapes pass unchanged.

    Features of different widths have one map for each pair of layers, or one for all of a stack; attention maps with
    different numbers of heads have learned mixtures that start equal. They are optimised and checkpointed with the
    student, and never exported.
    """

    def __init__(self, shapes: Sequence[ProjectionShape], seed: int, mixes: Sequence[HeadMix] = ()) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleDict({_key_of(shape): _build(shape) for shape in shapes})
        self.mixes = nn.ParameterDict(
            {_key(mix.student, mix.teacher): torch.zeros(mix.teacher_heads, mix.student_heads) for mix in mixes}
        )

    def forward(
        self, hidden: Float[Tensor, "batch time width"], student: Layer, teacher: Layer
    ) -> Float[Tensor, "batch time other_width"]:
        """Project one side's features of a pair to the other side's width."""
        for key in (_key(student, teacher), _stacks(student, teacher)):
            if key in self.maps:
                projected: Tensor = self.maps[key](hidden)
                return projected
        return hidden

    def start(self, shape: ProjectionShape, weight: Float[Tensor, "out into"]) -> None:
        """Set the initial weight of a projection's linear map."""
        made = self.maps[_key_of(shape)]
        linear = made[0] if isinstance(made, nn.Sequential) else made
        with torch.no_grad():
            linear.weight = weight if is_parametrized(linear) else nn.Parameter(weight)

    def mixed(
        self, attention: Float[Tensor, "batch heads time keys"], student: Layer, teacher: Layer
    ) -> Float[Tensor, "batch teacher_heads time keys"]:
        """Mix the student layer's maps into as many as the teacher layer has, by learned weights."""
        key = _key(student, teacher)
        if key not in self.mixes:
            return attention
        with torch.autocast(attention.device.type, enabled=False):
            return torch.einsum("ts,bsij->btij", self.mixes[key].softmax(dim=-1), attention.float())


def _build(shape: ProjectionShape) -> nn.Module:
    into, out = shape.ends
    linear = nn.Linear(into, out, bias=False)
    match shape.style.kind:
        case "norm":
            return nn.Sequential(linear, nn.LayerNorm(out))
        case "mlp":
            middle = max(into, out)
            return nn.Sequential(nn.Linear(into, middle), nn.GELU(), nn.Linear(middle, out))
        case "orthogonal":
            # Not by Householder reflections, torch's choice for such shapes: weight decay alone turns its signs to 0.
            return orthogonal(linear, orthogonal_map="matrix_exp")
    return linear


def first_weight(
    start: str, given: Float[Tensor, "tokens into"], wanted: Float[Tensor, "tokens out"], scaled: bool
) -> Float[Tensor, "out into"]:
    r"""Fit a projection's initial weight W to input features X and target features Y.

    ``least-squares`` minimises :math:`\|X W^\top - Y\|^2` (with a ridge of a ten-thousandth of X's mean square, since
    features of few tokens may not span their width). ``procrustes`` does so among maps with orthonormal rows or columns
    (Schönemann 1966), if ``scaled`` times one factor. ``pca`` maps to or from the principal directions of the wider
    side, which fits a narrow side that was made from them.
    """
    x, y = given.double(), wanted.double()
    weight: Tensor
    if start == "least-squares":
        ridge = 1e-4 * x.square().mean() * len(x) * torch.eye(x.size(1), dtype=x.dtype)
        weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T
    elif start == "procrustes":
        left, sizes, right = torch.linalg.svd(x.T @ y, full_matrices=False)
        scale = sizes.sum() / x.square().sum() if scaled else 1.0
        weight = (scale * left @ right).T
    else:
        wide, narrow = (x, y.size(1)) if x.size(1) > y.size(1) else (y, x.size(1))
        wide_apart = wide - wide.mean(dim=0)
        main = torch.linalg.eigh(wide_apart.T @ wide_apart)[1].flip(1)[:, :narrow]  # (wide, narrow)
        weight = main.T if wide is x else main
    return weight.float().contiguous()


def _key_of(shape: ProjectionShape) -> str:
    name = _stacks if shape.style.shared else _key
    return name(shape.student, shape.teacher)


def _stacks(student: Layer, teacher: Layer) -> str:
    return f"{student.stack}_to_{teacher.stack}"


def _key(student: Layer, teacher: Layer) -> str:
    return f"{student.stack}_{student.number}_to_{teacher.stack}_{teacher.number}"
