"""Generate texts without a key-value cache: masked models fill gaps, permutation models add tokens one by one."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.data.tokenization import special_frame
from kdalign.evaluation.decoding import Answer, GenerationSettings, check_logits, decode_rows, pad_rows, token_budget
from kdalign.models.capture import CaptureSpec, forward
from kdalign.models.checkpoint_files import max_positions
from kdalign.models.inputs import accepted_inputs


def fill_masks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> list[Answer]:
    r"""Continue prompts with a masked model by Mask-Predict: Ghazvininejad et al. 2019, arXiv:1904.09324, section 3.

    As many masks as the held-out text has tokens are filled at once; in round t of T the
    :math:`\lfloor N (T - t) / T \rfloor` of the N least probable are masked again.
    """
    before, after = special_frame(tokenizer)
    mask, special = int(tokenizer.mask_token_id), torch.tensor(tokenizer.all_special_ids, device=model.device)
    rows, spans, cut = [], [], []
    for case in cases:
        prompt, gap = _tokenize_case(tokenizer, case)
        positions = max_positions(model.config) - len(before) - len(after)
        gap = min(gap, positions // 2, gap if case.words else settings.new_tokens)
        cut.append(len(prompt) > positions - gap)
        prompt = prompt[-(positions - gap) :]
        spans.append((len(before) + len(prompt), gap))
        rows.append([*before, *prompt, *[mask] * gap, *after])
    ids, real = pad_rows(rows, int(tokenizer.pad_token_id), model.device)
    gaps = torch.zeros_like(ids, dtype=torch.bool)
    for row, (start, size) in enumerate(spans):
        gaps[row, start : start + size] = True
    sizes, masked = gaps.sum(dim=1), gaps.clone()
    sure = torch.zeros(ids.shape, device=model.device)
    for turn in range(1, settings.rounds + 1):
        signals = forward(
            model, accepted_inputs(model, {"input_ids": ids, "attention_mask": real}), CaptureSpec(), None
        )
        assert signals.head is not None, "a language model has a vocabulary"
        logits = signals.head.logits(signals.features[masked])
        check_logits(logits)
        logits[:, special] = -torch.inf
        probability, token = logits.softmax(dim=-1).max(dim=-1)
        ids[masked], sure[masked] = token, probability
        again = sizes * (settings.rounds - turn) // settings.rounds
        ranks = torch.where(gaps, sure, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        masked = gaps & (ranks < again[:, None])
        if not masked.any():
            break
        ids = torch.where(masked, mask, ids)
    texts = decode_rows(tokenizer, [ids[row, start : start + size] for row, (start, size) in enumerate(spans)])
    return [Answer(text, True, one, start, size) for text, one, (start, size) in zip(texts, cut, spans, strict=True)]


def _tokenize_case(tokenizer: PreTrainedTokenizerBase, case: GenerationCase) -> tuple[list[int], int]:
    """Return a prompt's tokens, and the number of tokens of the held-out text after it."""
    tokens = tokenizer(case.full_text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prompt = [
        token
        for token, (_, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        if end <= len(case.prompt)
    ]
    return prompt, max(1, len(tokens["input_ids"]) - len(prompt))


def continue_permuted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> list[Answer]:
    """Continue prompts with a permutation model: each next token in a new pass, from all tokens before it."""
    prompts = tokenizer([case.prompt for case in cases], add_special_tokens=False, verbose=False)["input_ids"]
    special = torch.tensor([*set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}], device=model.device)
    ids = [list(prompt) for prompt in prompts]
    going = list(range(len(cases)))
    for _ in range(token_budget(cases, settings)):
        # The predicted position holds any token, which no position sees.
        padded, real = pad_rows([[*ids[row], 0] for row in going], 0, model.device)
        last = real.sum(dim=1) - 1
        position = torch.arange(padded.size(1), device=model.device)
        unseen = (position[None, None, :] >= position[None, :, None]) | (real == 0)[:, None, :]
        inputs = {
            "input_ids": padded,
            "attention_mask": real,
            "perm_mask": unseen.to(model.dtype),
            "target_mapping": torch.nn.functional.one_hot(last, padded.size(1))[:, None, :].to(model.dtype),
        }
        signals = forward(model, inputs, CaptureSpec(), None)
        assert signals.head is not None, "a language model has a vocabulary"
        logits = signals.head.logits(signals.features[:, 0])
        check_logits(logits)
        logits[:, special] = -torch.inf
        for row, token in zip(going, logits.argmax(dim=-1).tolist(), strict=True):
            ids[row].append(token)
        texts = decode_rows(tokenizer, [ids[row][len(prompts[row]) :] for row in going])
        going = [
            row
            for row, text in zip(going, texts, strict=True)
            if ids[row][-1] != tokenizer.eos_token_id and not cases[row].is_complete(text)
        ]
        if not going:
            break
    new = [row[len(prompt) :] for row, prompt in zip(ids, prompts, strict=True)]
    return [
        Answer(text, True, False, len(prompt), len(row))
        for text, row, prompt in zip(decode_rows(tokenizer, new), new, prompts, strict=True)
    ]
