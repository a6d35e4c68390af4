"""Compare a language model's perplexity with an interpolated bigram's of the same tokens and text.

    python examples/bigram.py runs/bert runs/xlnet

A bigram sees one token back; a model that does not beat it well has learnt little. Its three weights (bigram, unigram,
uniform) are fitted by expectation maximisation on the last twentieth of the training documents.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from kdalign.data.tasks import find_task, load_texts
from kdalign.runs.record import read_record


def pairs(tokenizer, documents):
    """Pair every token with the one before it; a document's first token follows -1."""
    ids = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    before = np.concatenate([[-1, *row[:-1]] for row in ids if row])
    return np.stack([before, np.concatenate([row for row in ids if row])])


class Bigram:
    def __init__(self, counted, fitted, vocabulary):
        self.pair = Counter(zip(*counted.tolist(), strict=True))
        self.first = Counter(counted[0].tolist())
        self.token = np.bincount(counted[1], minlength=vocabulary) / counted.shape[1]
        self.weights = np.ones(3) / 3
        parts = self.parts(fitted)
        for _ in range(50):
            shares = parts * self.weights
            self.weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)

    def parts(self, asked):
        """Return probabilities (tokens, 3) by bigram, unigram and uniform."""
        seen = [self.pair[one] / max(1, self.first[one[0]]) for one in zip(*asked.tolist(), strict=True)]
        return np.stack([seen, self.token[asked[1]], np.full(asked.shape[1], 1 / len(self.token))], axis=1)

    def perplexity(self, asked):
        return float(np.exp(-np.log(self.parts(asked) @ self.weights).mean()))


def main(run):
    record = read_record(Path(run))
    data = record.parsed_recipe().data
    task = find_task(data.task[0], data.folder, data.dataset, data.config)
    train, scored = (load_texts(task, split).texts[0] for split in (task.train, task.evaluation[0]))
    tokenizer = AutoTokenizer.from_pretrained(f"{run}/student")
    kept = len(train) - len(train) // 20
    bigram = Bigram(pairs(tokenizer, train[:kept]), pairs(tokenizer, train[kept:]), len(tokenizer))
    theirs = bigram.perplexity(pairs(tokenizer, scored))
    score = record.scores[task.evaluation[0]]["student"][0]
    below = 100 * (1 - score["value"] / theirs)
    how = f"{score['metric']} {score['value']:.1f} ({score['signature']})"
    print(f"{run}: {how}; bigram {theirs:.1f}; {below:.0f} % below")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name)
