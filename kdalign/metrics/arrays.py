"""The type of arrays of any shape and type."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
