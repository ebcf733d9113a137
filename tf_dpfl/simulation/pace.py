"""A run's clock: its speed, the time left, and what checkpoints may cost of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# Of the run's time, for all checkpoints together.
LARGEST_CHECKPOINT_SHARE = 0.04  # of 0.05: the next one may take longer than the last


class Pace:
    """Times one process's rounds; made when its first round begins.

    `last_checkpoint_s` is what the last checkpoint took, 0 before the first.

    Args:
      rounds: how many this process has to compute.
      clock: seconds that never go back.
    """

    def __init__(self, *, rounds: int, clock: Callable[[], float] = time.monotonic):
        self._rounds = rounds
        self._clock = clock
        self._began = clock()
        self._checkpoints_s = 0.0
        self.last_checkpoint_s = 0.0

    def seconds_left(self, rounds_done: int) -> float:
        """At the speed so far, checkpoints and evaluation included; rounds_done >= 1."""
        return (self._clock() - self._began) / rounds_done * (self._rounds - rounds_done)

    def allows_checkpoint(self) -> bool:
        """Whether one more stays within the share; always true for the first one."""
        expected = self._checkpoints_s + self.last_checkpoint_s
        return expected <= LARGEST_CHECKPOINT_SHARE * (self._clock() - self._began)

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Times the block as a checkpoint."""
        began = self._clock()
        yield
        self.last_checkpoint_s = self._clock() - began
        self._checkpoints_s += self.last_checkpoint_s
