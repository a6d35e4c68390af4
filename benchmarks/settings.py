"""What `benchmarks.run` compares: groups of the same work, a row for each way to do it, and how long it is measured."""

from dataclasses import dataclass, replace

from kdalign.errors import unknown

ROWS_KEPT = 2048
"""Training rows that all peers of an encoder draw from: an epoch of 64 batches."""
PAIR_SHAPE = 4, 512
"""Rows of a language model's step, and their tokens."""


@dataclass(frozen=True)
class Group:
    """Rows that do the same work.

    Attributes:
        title: what is trained.
        scored: whether the students' accuracy is measured.
        models: which models' operations count: ``classifier`` or ``language``.
    """

    title: str
    models: str
    scored: bool = False


GROUPS = {
    "joint": Group(
        "A classifier of SST-2, batches of 32: labels, soft targets, cosine and squared distance of features, "
        "attention maps",
        "classifier",
        scored=True,
    ),
    "embedding": Group("Embeddings of the same sentences, batches of 32", "classifier"),
    "language": Group("A language model, 4 rows of 512 random tokens: forward KL", "language"),
}


@dataclass(frozen=True)
class Row:
    """One way to do a group's work.

    Attributes:
        group: name of the group.
        peer: name of the library, and of its module in ``benchmarks.peers``.
        variant: the module's way to train.
        what: what is particular about it.
        teacher: whether the teacher computes in each step.
        sorted: whether batches hold rows of similar length, so that the work of steps differs.
    """

    group: str
    peer: str
    variant: str
    what: str
    teacher: bool = True
    sorted: bool = False

    @property
    def module(self) -> str:
        """Name of the module that measures it."""
        return f"benchmarks.peers.{self.peer.replace('-', '_')}"


DYNAMIC = "random batches padded to their longest"
TUNED = "batches of similar length"
ROWS = (
    Row("joint", "kdalign", "joint", "defaults", sorted=True),
    Row("joint", "kdalign", "cached", "teacher cached", teacher=False, sorted=True),
    Row("joint", "kdalign", "alone", "fine-tuning without a teacher", teacher=False, sorted=True),
    Row("joint", "trainer", "dynamic", DYNAMIC),
    Row("joint", "trainer", "tuned", TUNED, sorted=True),
    Row("joint", "textbrewer", "padded", "rows padded to 128, as in its examples"),
    Row("joint", "textbrewer", "dynamic", DYNAMIC),
    Row("joint", "textbrewer", "tuned", TUNED, sorted=True),
    Row("joint", "torchdistill", "dynamic", DYNAMIC),
    Row("joint", "torchdistill", "tuned", TUNED, sorted=True),
    Row("embedding", "kdalign", "embedding", "embeddings alone", sorted=True),
    Row("embedding", "kdalign", "embedding-layers", "layers and attention maps, too", sorted=True),
    Row("embedding", "sentence-transformers", "documented", "as in its documentation"),
    Row("embedding", "sentence-transformers", "tuned", TUNED, sorted=True),
    Row("language", "kdalign", "language", "forward KL alone"),
    Row("language", "trl", "gkd", "GKDTrainer"),
    Row("language", "trl", "distillation", "DistillationTrainer, on given rows"),
)
PEERS = tuple(dict.fromkeys(row.peer for row in ROWS))


@dataclass(frozen=True)
class Mode:
    """How long is measured.

    Attributes:
        turns: times that each row is measured, each in a new process.
        warm_up: steps before the clock starts.
        least: steps that are timed at least.
        sorted: steps that are timed at least of rows whose steps differ, so that long and short texts are among them.
        seconds: seconds that are timed at least.
        language_turns: turns of a language model, whose steps take seconds: one warms up, and one is timed.
        accuracy_steps: steps after which the students are scored, in the last turn; 0 for no scores.
        accuracy_seconds: seconds of training after which they are scored, too.
    """

    turns: int
    warm_up: int
    least: int
    sorted: int
    seconds: float
    language_turns: int
    accuracy_steps: int = 0
    accuracy_seconds: float = 0.0

    def with_turns(self, turns: int | None) -> "Mode":
        """Return the mode with another number of turns; None keeps it."""
        return self if turns is None else replace(self, turns=turns)

    def limits(self, row: Row, turn: int) -> dict[str, float] | None:
        """Return what ends a row's turn, by the names of `benchmarks.peers.meter.Job`; None if it has no such turn.

        Turns count from 0.
        """
        if GROUPS[row.group].models == "language":
            one = {"warm_up": 1, "least": 1, "seconds": 0.0}
            return one if turn < min(self.turns, self.language_turns) else None
        found = {"warm_up": self.warm_up, "least": self.sorted if row.sorted else self.least, "seconds": self.seconds}
        if GROUPS[row.group].scored and turn == self.turns - 1:
            found |= {name: getattr(self, name) for name in ("accuracy_steps", "accuracy_seconds")}
        return found


MODES = {
    "quick": Mode(turns=2, warm_up=2, least=2, sorted=16, seconds=1.5, language_turns=1),
    "full": Mode(5, 3, 4, 64, 5.0, 5, accuracy_steps=128, accuracy_seconds=20.0),
}


def choose_rows(only: list[str] | None, language: bool) -> list[Row]:
    """Return the rows of some peers, in the table's order.

    Args:
        only: names of peers, or of their variants, such as ``trainer:tuned``; None for all.
        language: whether there is a teacher for the group of language models.

    Raises:
        UsageError: a name is not a peer's.
    """
    variants = [f"{row.peer}:{row.variant}" for row in ROWS]
    for name in only or ():
        if name not in (*PEERS, *variants):
            raise unknown("peer", name, variants if ":" in name else PEERS)
    asked = [row for row in ROWS if only is None or {row.peer, f"{row.peer}:{row.variant}"} & set(only)]
    return [row for row in asked if language or GROUPS[row.group].models != "language"]
