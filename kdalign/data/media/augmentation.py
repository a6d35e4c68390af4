"""Random changes of images while training, seen by both models alike."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class ImageAugmentation:
    """Random crops and flips, as in He et al. 2016 (arXiv:1512.03385, section 4.2).

    Attributes:
        shift: most pixels by which an image is moved, as a share of its height and width; what moves in repeats the
            border.
        flip: True to mirror half of the images, left to right.
    """

    shift: float = 0.0
    flip: bool = False

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], generator: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Change an image; the generator is the row's own."""
        height, width = image.shape[:2]
        most = int(self.shift * height), int(self.shift * width)
        down, right = (int(generator.integers(-each, each + 1)) for each in most)
        mirrored = bool(generator.integers(2)) and self.flip
        if down or right:
            padded = np.pad(image, ((most[0],) * 2, (most[1],) * 2, (0, 0)), mode="edge")
            image = padded[most[0] - down :, most[1] - right :][:height, :width]
        return np.ascontiguousarray(image[:, ::-1] if mirrored else image)
