"""Find a model's settings for text generation, and the tokens that end its texts."""

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from kdalign.models.checkpoint_files import Checkpoint


def find_generation_settings(checkpoint: Checkpoint | None, config: PretrainedConfig) -> GenerationConfig:
    """Find a model's settings for text generation without loading it: its file's, else those of its configuration.

    Args:
        checkpoint: where ``generation_config.json`` may be; None for a model that is not on disk yet.
        config: the model's configuration.
    """
    if checkpoint is not None and checkpoint.gguf is None:
        try:
            return GenerationConfig.from_pretrained(checkpoint.path, revision=checkpoint.revision)
        except OSError:
            pass  # it has no such file
    return GenerationConfig.from_model_config(config)


def end_tokens(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which a model ends a text: those of its settings for generation, else its tokenizer's."""
    named = vars(settings).get("eos_token_id")
    named = tokenizer.eos_token_id if named is None else named
    return [] if named is None else [named] if isinstance(named, int) else [int(token) for token in named]
