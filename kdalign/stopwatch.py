"""Seconds of a run by phase."""

import time


class Stopwatch:
    """Wall-clock seconds of a run's phases; a phase lasts until the next one begins."""

    def __init__(self, phase: str, since: float | None = None) -> None:
        """Begin a phase, now or at an earlier reading of ``time.perf_counter``."""
        self._seconds: dict[str, float] = {}
        self._phase, self._since = phase, time.perf_counter() if since is None else since

    def begin(self, phase: str) -> None:
        """End the current phase and begin another, or go on with an earlier one."""
        now = time.perf_counter()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def restart(self, phase: str) -> None:
        """Forget all phases and begin one."""
        self._seconds = {}
        self._phase, self._since = phase, time.perf_counter()

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase until now, in the order in which phases began."""
        self.begin(self._phase)
        return dict(self._seconds)

    @property
    def total(self) -> float:
        """Seconds of all phases until now."""
        return sum(self.phases.values())

    def __str__(self) -> str:
        """Describe where the time went, the longest phases first, such as ``12.3 s: training 9.1, scoring 3.2``."""
        longest = sorted(self.phases.items(), key=lambda phase: -phase[1])
        shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in longest if seconds >= 0.05)
        return f"{self.total:.1f} s{f': {shown}' if shown else ''}"
