"""Lines of progress."""

import io
from dataclasses import replace

from rich.console import Console

from kdalign.observer import StepReport
from kdalign.report.progress import ConsoleObserver, format_step

REPORT = StepReport(3, 12, 0.25, 2.0, {"soft": 2.0}, {}, 1e-3, 1.0, 8.0, 90.0, seconds_left=75.0)


def test_a_step_is_shown_with_the_time_left_and_where_tokens_decide_with_these():
    assert format_step(REPORT) == "step 3/12 epoch 0.25 loss 2.0000 soft 2.0000 8 samples/s 90 tokens/s 1:15 left"
    assert " pass 2 loss " in format_step(replace(REPORT, epoch=1, passes=2)), "a stream has no epochs"
    line = format_step(replace(REPORT, tokens_left=6750))
    assert line.startswith("step 3/~12 epoch")
    assert line.endswith("90 tokens/s 6,750 tokens, 1:15 left")


def test_a_run_begins_with_its_length_in_steps_or_in_tokens():
    written = io.StringIO()
    observer = ConsoleObserver(Console(file=written))
    observer.started("training", 0, 12)
    observer.started("training", 3, 12, 9000)
    assert written.getvalue().splitlines() == [
        "training: 12 steps",
        "training: 9,000 tokens, about 12 steps, resumed after step 3",
    ]
