"""Check the JSON of an alignment plan: its sizes before they are used, and its keys against those that were read."""

from kdalign.errors import UsageError, unknown
from kdalign.models.layouts import LAYOUTS

_ABSENT = object()
_LARGEST = 10**6
"""Upper limit of a stack's sizes, since they bound loops."""


def check_sizes(tree: object) -> None:
    """Refuse impossible sizes of models before they are used.

    Raises:
        UsageError: the side and the field, and what is accepted.
    """
    for side in ("teacher", "student") if isinstance(tree, dict) else ():
        model = tree.get(side) if isinstance(tree, dict) else None
        stacks = model.get("stacks") if isinstance(model, dict) else None
        for stack in stacks if isinstance(stacks, list) else ():
            for key, value in stack.items() if isinstance(stack, dict) else ():
                sizes = value if key == "widths" and isinstance(value, list) else [value]
                if key != "name" and not all(type(size) is int and 1 <= size <= _LARGEST for size in sizes):
                    raise UsageError(f"not a plan: {side}.stacks: {key} is a whole number from 1 to {_LARGEST:,}")
        family = model.get("family") if isinstance(model, dict) else None
        families = sorted({layout.family for layout in LAYOUTS.values()})
        if isinstance(family, str) and family not in families:
            raise unknown(f"family of the plan's {side}", family, families)


def first_difference(given: object, taken: object, place: str = "") -> str:
    """Find the first place where a tree differs from the plan read from it (true for 1, an unknown key)."""
    inner: list[tuple[str, object, object]]
    if isinstance(given, dict) and isinstance(taken, dict):
        inner = [(str(key), value, taken.get(key, _ABSENT)) for key, value in given.items()]
    elif isinstance(given, list) and isinstance(taken, list) and len(given) == len(taken):
        inner = [(str(number), one, other) for number, (one, other) in enumerate(zip(given, taken, strict=True))]
    else:
        as_float = type(given) is int and type(taken) is float
        return "" if given == taken and (as_float or type(given) is type(taken)) else place.lstrip(".") or "the whole"
    return next((found for key, *both in inner if (found := first_difference(both[0], both[1], f"{place}.{key}"))), "")
