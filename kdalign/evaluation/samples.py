"""Samples: greedy completions of a few prompts, which show a language model's progress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.chat_templates import render_prompt
from kdalign.data.conversations import SourcePrompts
from kdalign.data.media.readers import MediaReader
from kdalign.data.tasks import Examples
from kdalign.data.tasks.conversations import Conversation
from kdalign.data.tokenization import start_token
from kdalign.evaluation.decoding import pad_rows
from kdalign.evaluation.transcription import write_speech
from kdalign.models.capture import inference_mode
from kdalign.models.checkpoint_files import max_positions
from kdalign.models.generation_settings import end_tokens
from kdalign.models.sharding import gathered, needs_every_rank
from kdalign.ranks import share_batches

PROMPT_TOKENS = 12
NEW_TOKENS = 24


@dataclass(frozen=True)
class Prompt:
    """A prompt: what to show, and what to read of a source or of the beginning of a text.

    Attributes:
        text: a text, or the name of a sound.
        ids: tokens to read; those that name the content of a sound.
        features: of a sound, which are read instead; None for texts.
    """

    text: str
    ids: tuple[int, ...]
    features: Mapping[str, Tensor] | None = None


def continuation_prompts(examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
    """Take the first tokens of the first texts, at most half of a text."""
    prompts = []
    for text in examples.texts[0][:count]:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = ids[: min(PROMPT_TOKENS, -(-len(ids) // 2))]
        text = tokenizer.decode(ids).rstrip("\ufffd")  # half of a character
        prompts.append(Prompt(text, (*start_token(tokenizer), *ids)))
    return tuple(prompts)


def retokenize_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> tuple[Prompt, ...]:
    """Tokenize prompts by another tokenizer."""
    tokens = [tokenizer(prompt.text, add_special_tokens=False, verbose=False)["input_ids"] for prompt in prompts]
    return tuple(
        Prompt(prompt.text, (*start_token(tokenizer), *ids)) for prompt, ids in zip(prompts, tokens, strict=True)
    )


def source_prompts(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int, max_length: int
) -> tuple[Prompt, ...]:
    """Take the first sources."""
    texts = list(examples.texts[0][:count])
    if not texts:
        return ()
    pieces = tokenizer(texts, truncation=True, max_length=max_length, verbose=False)["input_ids"]
    return tuple(Prompt(text, tuple(ids)) for text, ids in zip(texts, pieces, strict=True))


def prompted_sources(examples: Examples, prompts: SourcePrompts, count: int, max_length: int) -> tuple[Prompt, ...]:
    """Take the first sources, in the prompts of a causal model."""
    texts = list(examples.texts[0][:count])
    pieces, _ = prompts.tokenize(texts, [max_length] * len(texts))
    return tuple(Prompt(text, tuple(ids)) for text, ids in zip(texts, pieces, strict=True))


def speech_prompts(examples: Examples, reader: MediaReader, count: int) -> tuple[Prompt, ...]:
    """Take the first sounds."""
    media, prompts = examples.media, list[Prompt]()
    assert media is not None, "a task of speech has sounds"
    for row in range(min(count, len(media))):
        features = reader.inputs([reader.decode(media.read(row), media.name(row))])
        prompts.append(Prompt(media.name(row), (int(media.digests[row][:15], 16),), features))
    return tuple(prompts)


def chat_prompts(examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
    """Take the first conversations, up to the assistant's first turn."""
    prompts = []
    for text in examples.texts[0][:count]:
        chat = Conversation.from_json(text)
        turns = chat.messages[: chat.answers[0]]
        rendered, _ = render_prompt(turns, tokenizer, chat.tools)
        ids = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        prompts.append(Prompt(turns[-1]["content"], tuple(ids)))
    return tuple(prompts)


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], new_tokens: int = NEW_TOKENS
) -> list[str]:
    """Complete prompts greedily, those of one budget together, each as far as the model's positions allow."""
    if not prompts:  # a classifier has none, and no settings for generation either
        return []
    return decode_samples(tokenizer, continue_prompts(model, tokenizer, prompts, new_tokens))


def sample_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the settings of samples: greedy, up to an end token of the model's settings or the tokenizer's."""
    return GenerationConfig(
        do_sample=False,
        eos_token_id=end_tokens(model.generation_config, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int = NEW_TOKENS,
) -> list[list[int]]:
    """Return the tokens that follow each prompt, of which the last ones may be padding. Ranks share the budgets."""
    device, settings = next(model.parameters()).device, sample_settings(model, tokenizer)
    decodes, pad = model.config.is_encoder_decoder, settings.pad_token_id or 0  # the decoder begins anew
    used = [1 if decodes else len(prompt.ids) for prompt in prompts]
    budgets = [min(new_tokens, max_positions(model.config) - length) for length in used]
    in_step = needs_every_rank(model)

    def write(budget: int) -> dict[int, list[int]]:
        rows = [row for row, own in enumerate(budgets) if own == budget]
        if prompts[0].features is not None:
            return {row: write_speech(model, tokenizer, prompts[row].features or {}, budget)[0] for row in rows}
        ids, mask = pad_rows([prompts[row].ids for row in rows], pad, device, left=not decodes)
        settings.max_new_tokens = budget
        output = model.generate(ids, attention_mask=mask, generation_config=settings, synced_gpus=in_step)
        return dict(zip(rows, (output if decodes else output[:, ids.size(1) :]).tolist(), strict=True))

    tokens: list[list[int]] = [[] for _ in prompts]
    with inference_mode(model), gathered(model):
        for _, written in share_batches(sorted({each for each in budgets if each > 0}), write, in_step=in_step):
            for row, new in written.items():
                tokens[row] = new
    return tokens


def decode_samples(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Decode continuations; that of a prompt without room is empty."""
    return [tokenizer.decode(row, skip_special_tokens=True) if row else "" for row in tokens]
