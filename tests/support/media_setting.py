"""Tiny models of images and speech on disk, folders of what they read, and a teacher, student and objective of each."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.media.rows import MediaRows, media_digest
from kdalign.data.tasks import Examples
from kdalign.data.tokenization import read_images, tokenize_speech
from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.models import student
from kdalign.models.architecture import describe, layout_of
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec
from kdalign.models.grids import common_grid
from kdalign.models.heads import HeadKind, auto_class
from kdalign.models.media_reader import load_reader, new_media_reader
from kdalign.objective.build import build_classification_objective, build_language_objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support.media import encode_image, encode_wav

CLASSES = ("across", "down")
IMAGE_TYPES = {
    "vit": "new:vit,layers=4,width=32,heads=4,feed_forward=64,image=32,patch=8",
    "deit": "new:deit,layers=4,width=32,heads=4,feed_forward=64,image=32,patch=8",
    "swin": "new:swin,depths=1-1-1,width=16,heads=2-2-2,window=2,image=32,patch=4",
    "convnext": "new:convnext,depths=1-1-1,widths=16-24-32,image=32,patch=4",
    "resnet": "new:resnet,depths=1-1-1,widths=16-24-32,image=32",
}
"""A small model of each type; ``save_image_model`` gives it weights that tell images apart."""
SMALLER = {
    "vit": "layers=2",
    "deit": "new:vit,layers=2,width=24,heads=4,feed_forward=48,image=32,patch=8",
    "swin": "new:swin,depths=1-1,width=8,heads=2-2,window=2,image=24,patch=4",
    "convnext": "new:resnet,depths=1-1-1,widths=8-16-24,image=28",
    "resnet": "new:vit,layers=2,width=24,heads=4,feed_forward=48,image=28,patch=7",
}
"""A student of each: its own layers, or another type, width or size of image."""
DUAL_TYPES = {
    "clip": "new:clip,layers=4,width=32,heads=4,feed_forward=64,image=28,patch=7,joint=16,positions=40",
    "siglip": "new:siglip,layers=4,width=32,heads=4,feed_forward=64,image=28,patch=7,positions=40",
}
"""A small dual encoder of each type; ``save_dual_model`` gives it weights that tell images and texts apart."""
WORDS = {"low": 220, "high": 880, "mid": 440}
"""Spoken words, which are tones of these Hertz."""
RATE = 16_000


def striped(number: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """An image of noise with stripes, whose direction is its class: across for even numbers, down for odd ones."""
    generator = np.random.default_rng(number)
    image = generator.integers(0, 120, (*size, 3))
    start, step = int(generator.integers(3)), 4
    where = (slice(start, None, step), slice(None)) if number % 2 == 0 else (slice(None), slice(start, None, step))
    image[where] += 130
    return image.astype(np.uint8)


def spoken(number: int, words: int | None = None) -> tuple[bytes, str]:
    """A wav file of tones with a little noise, and the words that they are."""
    generator = np.random.default_rng(number)
    said = [str(word) for word in generator.choice(list(WORDS), words or int(generator.integers(1, 4)))]
    time = np.arange(RATE // 5) / RATE
    tones = np.concatenate([np.sin(2 * np.pi * WORDS[word] * time) for word in said])
    noisy = 0.5 * tones + 0.02 * generator.standard_normal(len(tones))
    return encode_wav((noisy * 20_000).astype(np.int16), RATE), " ".join(said)


def save_image_data(folder: Path, rows: int = 32, size: tuple[int, int] = (32, 32)) -> Path:
    """A folder of images by class, in two splits."""
    for split, first, many in (("train", 0, rows), ("validation", 1000, 8)):
        for number in range(first, first + many):
            file = folder / split / CLASSES[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_image(striped(number, size)))
    return folder


def save_speech_data(folder: Path, rows: int = 16) -> Path:
    """A folder of sounds with their transcripts, in two splits."""
    for split, first, many in (("train", 0, rows), ("validation", 1000, 4)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + many):
            sound, text = spoken(number)
            (folder / split / f"{number}.wav").write_bytes(sound)
            (folder / split / f"{number}.txt").write_text(text)
    return folder


def save_captions(folder: Path, rows: int = 32) -> Path:
    """A folder of images with captions that tell their stripes, in two splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, first, many in (("train", 0, rows), ("validation", 1000, 8)):
        numbers = range(first, first + many)
        captions = [f"stripes, {CLASSES[number % 2]}, number {number}" for number in numbers]
        images = [encode_image(striped(number, (28, 28))) for number in numbers]
        pd.DataFrame({"image": images, "text": captions}).to_parquet(folder / f"{split}.parquet")
    return folder


def new_image_model(spec: str, seed: int = 0, **changes: object):
    """A tiny classifier of images with weights large enough to tell them apart."""
    config = parse_scratch_spec(spec).config()
    config.update({"id2label": dict(enumerate(CLASSES)), "label2id": {c: n for n, c in enumerate(CLASSES)}, **changes})
    return with_large_weights(build_from_scratch(config, seed), seed)


def save_dual_model(folder: Path, spec: str, seed: int = 0) -> Path:
    """Save a tiny dual encoder, which tells images and texts apart, with its tokenizer and processor."""
    captions = [f"stripes, {CLASSES[number % 2]}, number {number}" for number in range(32)]
    tokenizer = train_tokenizer(captions, 300, "dual", positions=40, masks="siglip" not in spec)
    model = with_large_weights(build_from_scratch(parse_scratch_spec(spec).config(tokenizer), seed), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    new_media_reader(model.config, None).save(folder)
    return folder


def with_large_weights(model, seed: int):
    """Draw a model's weights so large that it tells its inputs apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                spread = 0.5 if "position" in name or "token" in name else parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
            elif "layer_scale" in name:  # ConvNeXt's layers would be as good as absent
                parameter.fill_(1.0)
    return model.eval()


def save_image_model(folder: Path, spec: str, seed: int = 0, **changes: object) -> Path:
    """Save a tiny classifier of images with its processor."""
    model = new_image_model(spec, seed, **changes)
    model.save_pretrained(folder)
    new_media_reader(model.config, None).save(folder)
    return folder


def make_speech_tokenizer():
    """Whisper's tokenizer over single bytes, which like the published one calls its end token alone special."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import WhisperTokenizer

    special = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    vocabulary = {token: number for number, token in enumerate((*sorted(ByteLevel.alphabet()), *special))}
    return WhisperTokenizer(vocab=vocabulary, merges=[], pad_token=special[0])


END, START, NO_TIMESTAMPS = 256, 257, 260


def save_whisper(
    folder: Path, seed: int = 0, layers: int = 4, width: int = 16, seconds: int = 1, positions: int = 40
) -> Path:
    """Save a tiny Whisper that reads sounds of a second, with its tokenizer and feature extractor."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    sizes = {f"{stack}_{part}": number for stack in ("encoder", "decoder")
             for part, number in {"layers": layers, "attention_heads": 2, "ffn_dim": 2 * width}.items()}  # fmt: skip
    config = WhisperConfig(
        vocab_size=264, d_model=width, num_mel_bins=8, max_source_positions=50 * seconds,
        max_target_positions=positions,
        pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=START, begin_suppress_tokens=None,
        suppress_tokens=None, init_std=0.3, **sizes,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START, no_timestamps_token_id=NO_TIMESTAMPS, is_multilingual=False, max_length=40,
        return_timestamps=False, pad_token_id=END, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip
    model.save_pretrained(folder)
    make_speech_tokenizer().save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=seconds).save_pretrained(folder)
    return folder


@cache
def saved(kind: str) -> Path:
    """The folder of a tiny model of a type, saved once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-"))
    return save_whisper(folder) if kind == "whisper" else save_image_model(folder, IMAGE_TYPES[kind])


def load(folder: Path):
    """A saved model with its head, by Transformers alone."""
    config = find_checkpoint(str(folder)).config
    head = HeadKind.SEQ2SEQ if config.model_type == "whisper" else HeadKind.CLASSIFIER
    return auto_class(head, config.model_type).from_pretrained(folder).eval()


def reader_of(folder: Path):
    """How a saved model reads its inputs."""
    return load_reader(find_checkpoint(str(folder)))


def rows_of(modality: str, encoded: list[bytes]) -> MediaRows:
    """A column of encoded sounds or images in memory."""
    return MediaRows(modality, encoded, [f"row {n}" for n in range(len(encoded))], [media_digest(e) for e in encoded])


def images(reader, n: int = 8, size: tuple[int, int] = (32, 32)):
    """A split of images as a model reads them."""
    rows = rows_of("image", [encode_image(striped(number, size)) for number in range(n)])
    return read_images(Examples("train", (rows,), np.arange(n) % 2), reader)


def spoken_examples(n: int, texts: list[str] | None = None) -> Examples:
    """Sounds with transcripts."""
    encoded, said = zip(*(spoken(number) for number in range(n)), strict=True)
    return Examples("train", (rows_of("audio", list(encoded)), tuple(texts or said)), None)


def sounds(reader, n: int = 8, max_length: int = 40, texts: list[str] | None = None):
    """A split of sounds with transcripts as a model reads them."""
    return tokenize_speech(spoken_examples(n, texts), reader, max_length)


def with_media(data, **changes):
    """A split whose sounds or images are read otherwise."""
    return replace(data, media=replace(data.media, **changes))


def on_common_grid(data, ours, theirs, teacher):
    """A split as a student and a teacher with a reader of its own read it, for features to be compared."""
    media = data.media
    own = None if teacher is media.reader else teacher
    return with_media(data, teacher=own, grid=common_grid([(ours, media.reader.size), (theirs, teacher.size)]))


KINDS = (*IMAGE_TYPES, "whisper")
ALL_IMAGE = Weights(hard=0.3, alpha=0.7, beta=1, gamma=1, delta=0, temperature=2)
ALL_SPEECH = Weights(hard=0.5, alpha=0.7, beta=1, gamma=0.5, delta=0.5, temperature=1.5)


class Setting:
    """A teacher and a smaller student that read images or speech, without dropout, with everything that joins them."""

    def __init__(self, kind: str, weights: Weights | None = None, ours: str | None = None, bf16: bool = False) -> None:
        self.kind, self.device = kind, torch.device("cpu")
        speech, theirs = kind == "whisper", reader_of(saved(kind))
        big = load(saved(kind))
        name = "layers=2" if speech else ours or SMALLER[kind]
        if name.startswith("new:"):
            small = new_image_model(name, seed=5)
            media = new_media_reader(small.config, theirs.media)
        else:
            cut = {stack.name: range(3) if name == "layers=3" else (1, 3) for stack in layout_of(big.config).stacks}
            small, media = student.copy_layers(big, cut), theirs.media
            generator = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for parameter in small.parameters():
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        self.reader, self.teacher_reader = media, theirs.media
        self.teacher = ComputedTeacher(
            big, None if speech else (0, 1), torch.bfloat16 if bf16 else torch.float32, self.device
        )
        if speech:
            self.data = sounds(theirs)
        else:
            self.data = on_common_grid(images(media), small.config, big.config, theirs.media)
        plan = propose(describe(big.config), describe(small.config))
        self.plan = plan = calibrate(plan, self.teacher, [collate(self.data, range(8))], self.device)
        weights = weights or (ALL_SPEECH if speech else ALL_IMAGE)
        if speech:
            self.objective = build_language_objective(weights, plan, torch.bfloat16 if bf16 else None)
        else:
            self.objective = build_classification_objective(weights, plan, regression=False)
        self.learner = Learner(
            small, Projections(plan.projections, 0), plan, [self.objective], None if speech else (0, 1), bf16
        ).eval()

    def breakdown(self, batch, units):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        return self.objective(TermInputs(self.learner(batch.inputs, taught), taught, batch), units)

    def gradient(self, batches, units=None):
        self.learner.zero_grad()
        units = units or count_units(batches)
        for batch in batches:
            self.breakdown(batch, units).total.backward()
        return {name: p.grad.clone() for name, p in self.learner.named_parameters() if p.grad is not None}
