"""Teachers and students with two tokenizers."""

import json
from collections import Counter
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import PreTrainedTokenizerFast

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import collate
from kdalign.data.dual_answers import tokenize_chats_dual
from kdalign.data.dual_pairs import tokenize_pairs_dual
from kdalign.data.dual_tokenization import tokenize_documents_dual, tokenize_labelled_dual
from kdalign.data.tasks import Examples
from kdalign.data.token_matching import shared_vocabulary
from kdalign.models.architecture import describe
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.objective.build import build_classification_objective, build_language_objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support.tiny import sentences, tiny_classifier

HARD_TEXTS = (
    "A naïve café — “déjà vu”, 1½ times: 100 % façade!",
    "Emoji 🎉 and families 👩‍👩‍👧, flags 🇩🇪, hearts ❤️ everywhere…",
    "Grüße aus Zürich; Москва, Αθήνα, 東京, 서울 und  two  spaces.",
    "don't you think it's the director's cut?\nA new line\tand a tab.",
    "ﬁne ligatures, combining e\u0301 and zero\u200bwidth",
)


CPU = torch.device("cpu")


def fast(made, **roles):
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def texts(n=300):
    return [*sentences(n, 7)[0], *HARD_TEXTS * 3]


@cache
def word_piece(words=60):
    """As BERT's: lower case, without accents, pieces marked by ##; its characters, and the commonest words and ends."""
    plain = normalizers.BertNormalizer(lowercase=True)
    split = [word for text in texts() for word, _ in BertPreTokenizer().pre_tokenize_str(plain.normalize_str(text))]
    ends = [f"##{word[cut:]}" for word in split for cut in range(1, len(word)) if len(word) - cut > 1]
    characters = sorted({character for word in split for character in word})
    common = [token for found in (split, ends) for token, _ in Counter(sorted(found)).most_common(words)]
    entries = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *characters,
        *(f"##{each}" for each in characters),
        *common,
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # its trainer is not the same every time
    made.normalizer, made.pre_tokenizer = plain, BertPreTokenizer()
    ids = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return fast(made, unk_token="[UNK]", **roles)


@cache
def byte_level(size=420):
    """As RoBERTa's and GPT-2's: bytes, spaces before words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    roles = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return fast(made, bos_token="<s>", eos_token="</s>", **roles)


@cache
def unigram(size=260):
    """As XLNet's: SentencePiece, its special tokens after the text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]
    made.train_from_iterator(
        texts(), trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>")
    )
    ids = [("<sep>", 4), ("<cls>", 3)]
    made.post_processor = processors.TemplateProcessing("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2", ids)
    roles = {"pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    return fast(made, unk_token="<unk>", **roles)


@cache
def byte_fallback(size=460):
    """As Llama's: SentencePiece with bytes for what it has no entry for."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(sentences(300, 7)[0], trainers.BpeTrainer(vocab_size=size + 20, special_tokens=special))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return fast(made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")


def examples(*columns):
    return Examples("train", tuple(tuple(column) for column in columns), None)


PAIRS = {
    "BERT and RoBERTa": (word_piece, byte_level),
    "BERT and XLNet": (word_piece, unigram),
    "Llama and GPT-2": (byte_fallback, byte_level),
    "Llama and BERT": (byte_fallback, word_piece),
}


def everything(n):
    return torch.arange(n), torch.arange(n)


ALL = Weights(hard=0.5, alpha=0.7, beta=1, gamma=0.5, delta=0.5, embeddings=0.5, relations=0.5, temperature=1.5)


KINDS = {
    "classes": ("bert", "bert", byte_level, word_piece),
    "masked": ("bert", "bert", byte_level, word_piece),
    "causal": ("gpt2", "llama", byte_level, byte_fallback),
    "chat": (
        "gpt2",
        "llama",
        lambda: import_module("support.chats").chat_tokenizer("plain"),
        lambda: import_module("support.chats").other_chat_tokenizer("channels"),
    ),
}


KINDS["seq2seq"] = ("bart", "bart", byte_level, byte_fallback)


EVERY = pytest.mark.parametrize("kind", KINDS)


class Setting:
    """A teacher and a student that read the same texts in other tokens, and all that joins them."""

    def __init__(self, kind, weights=ALL, choice="auto"):
        ours_type, theirs_type, *make = KINDS[kind]
        self.tokenizers = tuple(one() for one in make)
        rows, labels = sentences(8, 3)
        rows[3] = HARD_TEXTS[0]
        split = Examples("train", (tuple(rows),), np.array(labels) if kind == "classes" else None)
        if kind == "classes":
            self.data = tokenize_labelled_dual(split, self.tokenizers, 64)
            silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            big, small = (
                tiny_classifier(each, layers, 32, seed=layers, vocab_size=len(tokenizer), **silent)
                for each, layers, tokenizer in zip((theirs_type, ours_type), (4, 2), self.tokenizers[::-1], strict=True)
            )
        else:
            self.data = self._rows(kind, split)
            big, small = (
                self._model(each, layers, tokenizer)
                for each, layers, tokenizer in zip((theirs_type, ours_type), (4, 2), self.tokenizers[::-1], strict=True)
            )
        order = (0, 1) if kind == "classes" else None
        self.teacher = ComputedTeacher(big, order, torch.float32, CPU)
        plan = propose(describe(big.config), describe(small.config), choice, options=PlanOptions(relations="all"))
        self.plan = calibrate(plan, self.teacher, [collate(self.data, range(len(self.data)))], CPU)
        self.shared = shared_vocabulary(*self.tokenizers)
        self.shared = self.shared if self.data.ends is None else self.shared.with_pair(*self.data.ends)
        if kind == "classes":
            self.objective = build_classification_objective(weights, self.plan, regression=False)
        else:
            self.objective = build_language_objective(weights, self.plan, None, self.shared)
        self.learner = Learner(small, Projections((), 0), self.plan, [self.objective], order, False).eval()

    def _rows(self, kind, split):
        if kind == "seq2seq":
            pairs = examples(split.texts[0], split.texts[0][::-1])
            return tokenize_pairs_dual(pairs, self.tokenizers, (2, 2), 24)
        if kind != "chat":
            return tokenize_documents_dual(split, self.tokenizers, kind, 24)
        turns = [("user", "plot"), ("assistant", "{}")] * 2
        talks = ([{"role": role, "content": said.format(text[:12])} for role, said in turns] for text in split.texts[0])
        return tokenize_chats_dual(examples(map(json.dumps, talks)), self.tokenizers, 64)

    @staticmethod
    def _model(kind, layers, tokenizer):
        new = parse_scratch_spec(f"new:{kind},layers={layers},width=32,heads=4,feed_forward=64,positions=64")
        made = build_from_scratch(scratch_config(new, tokenizer), layers)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(4 if parameter.ndim >= 2 else 1)
        return made.eval()

    def breakdown(self, batch, units):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        return self.objective(TermInputs(self.learner(batch.inputs, taught), taught, batch), units)

    def gradient(self, batches):
        self.learner.zero_grad()
        units = count_units(batches)
        for batch in batches:
            self.breakdown(batch, units).total.backward()
        return torch.cat([p.grad.flatten() for p in self.learner.parameters() if p.grad is not None])
