"""Write small grey images as parquet files like those of the Hugging Face Hub, with labels or with captions.

    python -m benchmarks.vision.prepare OUT SOURCE [--count 8000 1000 1000] [--seed 0] [--labels NAME ...] [--captions]

SOURCE is a folder with idx files of images and labels (MNIST, or another data set in its format, such as Fashion-MNIST
of Debian's package dataset-fashion-mnist), or the word `digits` for the 1,797 images of 8 x 8 pixels that scikit-learn
ships. It writes OUT/{train,validation,test}.parquet, each with the shares of labels of its source; where the folder has
files for train and t10k, test is drawn from t10k alone, and the others from train:

    image     {"bytes": a PNG file's, "path": its name}, one channel
    label     number of the class, whose name is in the file's features: the digit, or of --labels

With --captions it also writes OUT-captions, the same images in the same order with `text` in place of `label`: words
for the digit and its strokes, lean and shape, measured on the image. It prints how many images share a description, and
so the recall@1 that a model which reads everything reaches.
It needs kdalign[vision].
"""

import argparse
import gzip
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value, disable_progress_bars
from PIL import Image as Picture
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLITS = ("train", "validation", "test")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Bounds near the thirds of MNIST's test images: stroke width in pixels, slant as a tangent, width over height.
STROKES = (("thin", "medium", "thick"), (2.4, 2.85))
LEANS = (("leaning left", "upright", "leaning right"), (-0.03, 0.2))
SHAPES = (("narrow", "normal", "wide"), (0.55, 0.72))
TEMPLATES = (
    "a handwritten {name}, {stroke} strokes, {lean}, {shape}",
    "the number {digit}: {shape}, {stroke} strokes, {lean}",
    "{lean}, a {shape} digit {name} drawn with a {stroke} pen",
    "this {shape} {digit} is {lean} and has {stroke} strokes",
)


@dataclass(frozen=True)
class Pool:
    """Images of shape (rows, height, width), 0 to 255, and the label of each."""

    name: str
    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Description:
    """What a caption says of an image."""

    digit: int
    stroke: str
    lean: str
    shape: str

    def write(self, template: str) -> str:
        """Return the caption in a template's words."""
        words = {"stroke": self.stroke, "lean": self.lean, "shape": self.shape}
        return template.format(name=NAMES[self.digit], digit=self.digit, **words)


def read_idx(file: Path) -> np.ndarray:
    """Read a gzipped idx file of bytes: two zeros, type 8, the number of axes, each axis in 4 bytes, the values."""
    raw = gzip.decompress(file.read_bytes())
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_source(source: str) -> list[Pool]:
    """Read what splits are drawn from: one pool for all, or one for train and validation and one for test."""
    if source == "digits":
        found = load_digits()
        return [Pool("digits", np.round(found.images * (255 / 16)).astype(np.uint8), found.target)]
    images = sorted(Path(source).glob("*-images-idx3-ubyte.gz"), reverse=True)  # train before t10k
    if not 1 <= len(images) <= 2:
        sys.exit(f"{source} has {len(images)} files *-images-idx3-ubyte.gz; 1 or 2 can be read")
    pools = []
    for file in images:
        name = file.name.removesuffix("-images-idx3-ubyte.gz")
        pools.append(Pool(name, read_idx(file), read_idx(file.with_name(f"{name}-labels-idx1-ubyte.gz"))))
    return pools


def draw(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows with each label's share of all, and return them and the others."""
    if count == len(labels):
        return np.arange(count), np.arange(0)
    drawn, others = train_test_split(np.arange(len(labels)), train_size=count, stratify=labels, random_state=seed)
    return drawn, others


def split_pools(pools: list[Pool], counts: list[int], seed: int) -> list[tuple[Pool, np.ndarray]]:
    """Draw the rows of train, validation and test, and return each with the pool that they are of."""
    test, others = draw(pools[-1].labels, counts[2], seed)
    rows = others if len(pools) == 1 else np.arange(len(pools[0].labels))
    validation, others = draw(pools[0].labels[rows], counts[1], seed)
    train, _ = draw(pools[0].labels[rows[others]], counts[0], seed)
    return [(pools[0], rows[others][train]), (pools[0], rows[validation]), (pools[-1], test)]


def encode(pool: Pool, row: int) -> dict[str, object]:
    """Return the value of an image's cell: the bytes of a PNG file and its name."""
    file = io.BytesIO()
    Picture.fromarray(pool.images[row]).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": f"{pool.name}-{row:05}.png"}


def describe(image: np.ndarray, digit: int) -> Description:
    r"""Measure an image, and say it in words.

    With ink :math:`p` between 0 and 1 and its central moments :math:`\mu` (x to the right, y down): the strokes' width
    is :math:`2 \sum p / TV(p)`, twice the area over the length of its edge (the total variation); the slant is
    :math:`-\mu_{11} / \mu_{02}`; the shape is width over height of the ink without its slant,
    :math:`\sqrt{(\mu_{20} - \mu_{11}^2/\mu_{02}) / \mu_{02}}`.
    """
    ink = np.pad(image / 255.0, 1)
    down, across = np.gradient(ink)
    stroke = 2 * ink.sum() / np.hypot(down, across).sum()
    y, x = (axis - np.average(axis, weights=ink) for axis in np.indices(ink.shape))
    xx, xy, yy = ((one * ink).sum() for one in (x * x, x * y, y * y))
    measured = (stroke, -xy / yy, np.sqrt(max(xx - xy**2 / yy, 0.0) / yy))
    scales = (STROKES, LEANS, SHAPES)
    words = (names[np.searchsorted(bounds, value)] for (names, bounds), value in zip(scales, measured, strict=True))
    return Description(int(digit), *words)


def best_recall(descriptions: list[Description]) -> float:
    """Return the highest expected recall@1, between 0 and 1, where only an image's own row counts as right.

    Of n images of one description, whatever their templates, a guess is right once in n: together they add 1.
    """
    return len(set(descriptions)) / len(descriptions)


def write(file: Path, images: list[dict[str, object]], column: str, values: Sequence[object], kind: object) -> None:
    """Write images and another column of a kind of the datasets library, as the Hub does."""
    features = Features({"image": Image(), column: kind})
    Dataset.from_dict({"image": images, column: list(values)}, features).to_parquet(file)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("source", help="folder of idx files, or digits")
    parser.add_argument(
        "--count", type=int, nargs=3, default=[8000, 1000, 1000], metavar=("TRAIN", "VALIDATION", "TEST")
    )
    parser.add_argument("--seed", type=int, default=0)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--labels", nargs="+", default=list("0123456789"), metavar="NAME", help="names of classes")
    which.add_argument("--captions", action="store_true", help="of digits: write OUT-captions, too")
    return parser.parse_args(arguments)


def main() -> None:
    """Write the data of the command line."""
    given = parse(sys.argv[1:])
    disable_progress_bars()
    splits = split_pools(read_source(given.source), given.count, given.seed)
    captions = given.out.with_name(f"{given.out.name}-captions")
    for folder in (given.out, captions) if given.captions else (given.out,):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (split, (pool, rows)) in enumerate(zip(SPLITS, splits, strict=True)):
        images, labels = [encode(pool, row) for row in rows], pool.labels[rows]
        write(given.out / f"{split}.parquet", images, "label", labels.tolist(), ClassLabel(names=given.labels))
        if given.captions:
            described = [describe(pool.images[row], pool.labels[row]) for row in rows]
            templates = np.random.default_rng((given.seed, number)).choice(TEMPLATES, len(rows))
            texts = [one.write(str(template)) for one, template in zip(described, templates, strict=True)]
            write(captions / f"{split}.parquet", images, "text", texts, Value("string"))
            meanings = f"{len(set(described))} descriptions and {len(set(texts))} texts of {len(rows)} images"
            print(f"{split}: {meanings}; recall@1 of an image's own row is at most {best_recall(described):.3f}")


if __name__ == "__main__":
    main()
