"""Read the settings of a new model, given as ``new:TYPE,key=value,...``."""

import re
from collections.abc import Sequence

from kdalign.errors import UsageError, unknown


def read_settings(text: str, accepted: Sequence[str]) -> dict[str, str]:
    """Return what a new model's settings say, by key.

    Raises:
        UsageError: an unknown key, or one that is given twice.
    """
    model_type, *settings = text.removeprefix("new:").split(",")
    given: dict[str, str] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in accepted:
            raise unknown(f"setting of new:{model_type}", key, accepted)
        if key in given:
            raise UsageError(f"new model {text!r} gives {key} twice (accepted: each setting once)")
        given[key] = value
    return given


def read_size(key: str, value: str) -> int:
    """Return a size.

    Raises:
        UsageError: what is accepted.
    """
    if not re.fullmatch(r"0*[1-9][0-9]{0,6}", value):
        raise UsageError(f"{key}={value} (accepted: {key}=N, a whole number from 1 to 9999999)")
    return int(value)


def read_dropout(value: str) -> float:
    """Return a share of dropout.

    Raises:
        UsageError: what is accepted.
    """
    if not re.fullmatch(r"0|0?\.[0-9]{1,9}", value):
        raise UsageError(f"dropout={value} (accepted: dropout=P, 0 <= P < 1, such as 0.1)")
    return float(value)
