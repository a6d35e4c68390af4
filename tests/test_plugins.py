"""The stable names for losses and metrics of one's own."""

import subprocess
import sys
import textwrap

import torch

from kdalign import plugins
from kdalign.data.batches import collate
from kdalign.metrics.text import score_texts
from kdalign.models.capture import Activations
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights
from kdalign.registry import allow_code
from support.classifier_setting import Setting, examples
from support.terms import NONE


def blocks():
    """The examples of the module's docstring."""
    _, *parts = plugins.__doc__.split("::\n\n")
    return [
        textwrap.dedent(part[: part.index("\n\nA ") if "\n\nA " in part else part.index("\n\nNames")]) for part in parts
    ]


def test_every_name_is_there():
    assert all(getattr(plugins, name).__module__.startswith("kdalign.") for name in plugins.__all__)
    assert dir(plugins) == plugins.__all__


def test_the_loss_of_the_docstring_is_a_term_of_the_objective(tmp_path):
    (tmp_path / "own.py").write_text(blocks()[0])
    name = f"{tmp_path}/own.py:SureGap"
    with allow_code():
        setting = Setting("bert", "bert", 32, ObjectiveWeights(**NONE, terms={name: {"weight": 1, "power": 1}}))
    batch = collate(examples(), range(2))
    sure = torch.tensor([[0.0, 9.0]]).log_softmax(-1).exp().amax(), 0.5
    signals = [Activations(logits=torch.tensor(rows)) for rows in ([[0.0, 9.0]] * 2, [[1.0, 1.0]] * 2)]
    parts = setting.objective(TermInputs(*signals, batch), count_units([batch])).parts
    torch.testing.assert_close(parts[name], sure[0] - sure[1])


def test_the_metric_of_the_docstring_counts_words(tmp_path):
    (tmp_path / "own.py").write_text(blocks()[1])
    with allow_code():
        ((score,), _) = score_texts([f"{tmp_path}/own.py:length"], ["a b", "c"], [["x"], ["y"]])
    assert (score.metric, score.value, score.unit) == ("length", 1.5, "words")


def test_a_metric_imports_no_torch():
    code = "import sys; from kdalign.plugins import Metric, mean_metric; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
