"""Load the feature extractor or image processor of a checkpoint, or make one for a new model."""

import math
from pathlib import Path

from transformers import AutoFeatureExtractor, AutoImageProcessor, PretrainedConfig, SequenceFeatureExtractor

from kdalign.data.input_reader import InputReader
from kdalign.data.media.readers import AudioReader, ImageReader, MediaReader
from kdalign.data.media.waves import WaveReader
from kdalign.data.tasks import AnyTask
from kdalign.errors import UsageError, library_errors
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint, quiet_transformers
from kdalign.models.inputs import convolutions_of, image_size, vision_config
from kdalign.models.layouts import LAYOUTS, modality_of, reads_samples
from kdalign.models.tokenizer import load_tokenizer


def load_reader(checkpoint: Checkpoint) -> InputReader:
    """Load how a checkpoint reads its inputs.

    Raises:
        UsageError: it has no tokenizer, feature extractor or image processor, or one of another model.
    """
    return InputReader(load_tokenizer(checkpoint), checkpoint.config, load_media_reader(checkpoint))


_READ = {"text": "text", "audio": "sounds", "image": "images"}


def check_modality(name: str, model_type: str, task: AnyTask) -> None:
    """Refuse a model that reads something else than a task has: text, sounds or images.

    Raises:
        UsageError: what the model reads, and the types that read what the task has.
    """
    reads, has = modality_of(model_type), task.modality
    if reads == has:
        return
    fitting = ", ".join(sorted(each for each, layout in LAYOUTS.items() if layout.modality == has))
    accepted = "models of text" if has == "text" else f"models of {_READ[has]}, such as {fitting}"
    raise UsageError(
        f"{name!r} is a {model_type} model, which reads {_READ[reads]}, and task {task.name!r} has {_READ[has]} "
        f"(accepted: {accepted})"
    )


def check_served(name: str, task: AnyTask) -> None:
    """Refuse a model behind an API for a task of sounds or images.

    Raises:
        UsageError: the task, and what is accepted.
    """
    if task.modality != "text":
        raise UsageError(
            f"{name!r} reads text alone, and task {task.name!r} has {_READ[task.modality]} (accepted: a checkpoint)"
        )


_FILES = ("preprocessor_config.json", "processor_config.json")


def load_media_reader(checkpoint: Checkpoint) -> MediaReader | None:
    """Load what prepares sounds or images for a checkpoint; None for a model of text.

    Raises:
        UsageError: it has none, or one for other inputs than the model's.
    """
    modality = layout_of(checkpoint.config).modality
    if modality == "text":
        return None
    what = "feature extractor" if modality == "audio" else "image processor"
    folder = Path(checkpoint.path)
    if folder.is_dir() and not any((folder / file).is_file() for file in _FILES):
        raise UsageError(f"model {checkpoint.name!r} has no {what}: it holds no {_FILES[0]}")
    with library_errors(f"model {checkpoint.name!r} has no {what} that can be read"), quiet_transformers():
        if modality == "audio":
            place = {"revision": checkpoint.revision, "trust_remote_code": False}
            return _audio_reader(AutoFeatureExtractor.from_pretrained(checkpoint.path, **place), checkpoint)
        _require_pillow()
        # The PIL backend needs no torchvision, and is the one by which the published processors were made.
        processor = AutoImageProcessor.from_pretrained(
            checkpoint.path, backend="pil", revision=checkpoint.revision, trust_remote_code=False
        )
    reader = ImageReader(processor, int(vision_config(checkpoint.config).num_channels))
    _check_image_size(reader, checkpoint)
    return reader


def _require_pillow() -> None:
    import importlib.util

    if importlib.util.find_spec("PIL") is None:
        raise UsageError("reading images needs a package: pip install 'kdalign[vision]'")


def _audio_reader(extractor: object, checkpoint: Checkpoint) -> AudioReader:
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    config = checkpoint.config
    if reads_samples(config.model_type):
        if not isinstance(extractor, Wav2Vec2FeatureExtractor):
            raise UsageError(
                f"the feature extractor of {checkpoint.name!r} is a {type(extractor).__name__} "
                f"(accepted for a {config.model_type} model: Wav2Vec2FeatureExtractor)"
            )
        return _wave_reader(extractor, config)
    if not isinstance(extractor, WhisperFeatureExtractor):
        raise UsageError(
            f"the feature extractor of {checkpoint.name!r} is a {type(extractor).__name__} "
            f"(accepted for a {config.model_type} model: WhisperFeatureExtractor)"
        )
    if (extractor.feature_size, extractor.nb_max_frames) != (config.num_mel_bins, 2 * config.max_source_positions):
        raise UsageError(
            f"the feature extractor of {checkpoint.name!r} gives {extractor.feature_size} mel bins over "
            f"{extractor.nb_max_frames} frames, and the model reads {config.num_mel_bins} over "
            f"{2 * config.max_source_positions}"
        )
    # A convolution of stride 2 halves the frames.
    return AudioReader(extractor, 2 * extractor.hop_length, int(config.max_source_positions))


def _wave_reader(extractor: SequenceFeatureExtractor, config: PretrainedConfig) -> WaveReader:
    """Make the reader of a model that reads samples.

    Raises:
        UsageError: its encoder is followed by convolutions that skip frames.
    """
    if getattr(config, "add_adapter", False):
        raise UsageError(f"a {config.model_type} model with add_adapter is not supported (accepted: without)")
    convolutions = convolutions_of(config)
    stride = math.prod(each for _, each in convolutions)
    # Models with a group norm over time were trained without a mask (Transformers' Wav2Vec2FeatureExtractor).
    return WaveReader(extractor, stride, None, convolutions=convolutions, masks=config.feat_extract_norm == "layer")


def _check_image_size(reader: ImageReader, checkpoint: Checkpoint) -> None:
    """Refuse a processor whose images a model with a position for each patch cannot read."""
    layout = layout_of(checkpoint.config)
    if not layout.staged and reader.size != image_size(checkpoint.config):
        given, wanted = (" x ".join(map(str, size)) for size in (reader.size, image_size(checkpoint.config)))
        raise UsageError(
            f"the image processor of {checkpoint.name!r} gives images of {given}, and the model reads {wanted}"
        )


def new_media_reader(config: PretrainedConfig, like: MediaReader | None) -> MediaReader | None:
    """Make the reader of a new model: the teacher's if it fits, or its normalisation at the new model's size.

    Args:
        config: the new model's configuration.
        like: the teacher's reader; None without a teacher, or for another modality.
    """
    modality = layout_of(config).modality
    if modality == "text":
        return None
    if modality == "audio":
        return _new_wave_reader(config, like) if reads_samples(config.model_type) else like
    own = like if isinstance(like, ImageReader) else None
    size, channels = image_size(config), int(vision_config(config).num_channels)
    if own is not None and (own.size, own.channels) == (size, channels):
        return own
    _require_pillow()
    from transformers import ViTImageProcessorPil

    known = own is not None and own.channels == channels
    mean, std = (own.processor.image_mean, own.processor.image_std) if known else ([0.5] * channels,) * 2  # type: ignore[union-attr]
    height, width = size
    shape = {"height": height, "width": width}
    return ImageReader(ViTImageProcessorPil(size=shape, image_mean=mean, image_std=std), channels)


def _new_wave_reader(config: PretrainedConfig, like: MediaReader | None) -> WaveReader:
    """Make the reader of a new model of samples: with the teacher's feature extractor, if that reads samples, too."""
    from transformers import Wav2Vec2FeatureExtractor

    if isinstance(like, WaveReader):
        return _wave_reader(like.extractor, config)
    return _wave_reader(Wav2Vec2FeatureExtractor(return_attention_mask=True), config)
