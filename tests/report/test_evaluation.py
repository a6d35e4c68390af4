"""Tables of evaluations: no number is broken at any width, and no dash is without its reason."""

from dataclasses import replace

from rich.console import Console

from kdalign.evaluation.result import EvaluationResult
from kdalign.metrics.classification import Score
from kdalign.report.evaluation import evaluation_table


def shown(evaluations, width):
    console = Console(width=width, record=True)
    with console.capture() as captured:
        console.print(evaluation_table(evaluations))
    return captured.get()


def evaluated(name, **values):
    scores = tuple(
        Score(metric, value, "%", 3, True, "by hand", *(() if value is None else (value - 1, value + 1)), reason=reason)
        for metric, (value, reason) in values.items()
    )
    return EvaluationResult(name, "mine", "file", "answers.jsonl", 3, 0, scores)


def test_no_number_is_broken_over_lines_at_any_width():
    values = {"bleu": 57.38, "chrf": 66.16, "ter": 1140.54, "word_ppl": 123456789.0, "cer": 8.25, "f1": 0.5}
    one = evaluated("my_answers_of_a_long_name", **{name: (value, "") for name, value in values.items()})
    for width in (30, 40, 60, 80, 120):
        out = shown([one], width)
        words = out.split()
        for number in ("57.38", "66.16", "1,141", "123,456,789", "8.25", "0.50"):
            assert number in words, (width, out)
        assert max(map(len, out.splitlines())) <= width


def test_a_perplexity_of_very_many_digits_is_shown_shortly():
    out = shown([evaluated("m", ppl=(1.2345e45, ""))], 80)
    assert "1.23e+45" in out
    assert "000,000" not in out


def test_every_dash_of_an_evaluation_has_its_reason_below():
    one = evaluated("m", cer=(None, "the references hold no characters to count edits over"), bleu=(1.0, ""))
    out = " ".join(shown([one], 80).split())
    assert "cer: – because the references hold no characters to count edits over" in out
    out = " ".join(shown([one, evaluated("n", cer=(3.0, ""), bleu=(1.0, ""))], 80).split())
    assert "count edits over (m)" in out


def test_cut_examples_are_told_of_their_task_where_a_model_is_scored_on_several():
    one = replace(evaluated("m", bleu=(50.0, "")), truncated=6)
    assert "m: 6 examples were truncated" in shown([one], 120)
    out = shown([one, replace(one, task="other", truncated=0)], 120)
    assert "m on mine, file: 6 examples were truncated to --max-length" in out
    assert "m on other" not in out
