"""The ledger: what was spent, whether more may be, and its log as JSON lines.

Arithmetic only; who owns a file or a database row appends the lines. The order
is always charge, make the line durable, release: after a crash the log holds
at least everything that was ever released.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import Mechanism, mechanism_from_json, merge_consecutive
from tf_dpfl.protocol.errors import BudgetError, StateError, TaskError

LEDGER_VERSION = 1
_KEYS = {"version", "round", "charged"}


@dataclass(frozen=True)
class Ledger:
    """Everything released about one set of users; all of it counts for one unit.

    Attributes:
      delta: in (0, 1), of every epsilon here.
      max_epsilon: no charge may bring `epsilon` above it; None: no limit.
      spending: mechanisms in the order they were charged.
    """

    delta: float
    max_epsilon: float | None = None
    spending: tuple[Mechanism, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuses limits that could never refuse anything, NaN among them."""
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta!r} must be in (0, 1)")
        if self.max_epsilon is not None and not self.max_epsilon >= 0:
            raise ValueError(f"max_epsilon={self.max_epsilon!r} must be >= 0 or None")
        object.__setattr__(self, "spending", merge_consecutive(self.spending))

    @cached_property
    def epsilon(self) -> float:
        """Central epsilon of everything charged; infinite if anything had no noise."""
        return central_epsilon(self.spending, delta=self.delta)

    @property
    def rounds(self) -> int:
        """Number of releases charged."""
        return sum(mechanism.rounds for mechanism in self.spending)

    def charge(self, mechanism: Mechanism) -> Ledger:
        """The ledger after one more mechanism; call it before the release.

        Raises BudgetError, and changes nothing, when that would exceed
        `max_epsilon`.
        """
        after = replace(self, spending=(*self.spending, mechanism))
        if self.max_epsilon is not None and not after.epsilon <= self.max_epsilon:
            raise BudgetError(
                f"the next {mechanism.rounds} round(s) would bring the central epsilon from "
                f"{_number(self.epsilon)} to {_number(after.epsilon)} (delta={self.delta:g}), "
                f"more than max_epsilon={_number(self.max_epsilon)}; nothing was released: stop "
                "here, or start a plan with more noise, fewer rounds or a larger budget"
            )
        return after


@dataclass(frozen=True)
class Charge:
    """One line of the log: what was charged, and for which round if that was said."""

    mechanism: Mechanism
    round_number: int | None = None

    def to_line(self) -> str:
        """One JSON line without its newline."""
        tree = {
            "version": LEDGER_VERSION,
            "round": self.round_number,
            "charged": self.mechanism.to_json(),
        }
        return json.dumps(tree, allow_nan=False)


def ledger_to_lines(ledger: Ledger) -> list[str]:
    """The ledger's spending as log lines, neighbouring equal charges as one."""
    return [Charge(mechanism).to_line() for mechanism in ledger.spending]


def charges_from_lines(lines: Iterable[str]) -> tuple[Charge, ...]:
    """The charges in a log, oldest first.

    The last line is dropped if it is not whole JSON: it was torn while it was
    written, so nothing was released on it. Empty lines are skipped.

    Raises StateError on any other line that is not `Charge.to_line`'s.
    """
    texts = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    texts = [(number, text) for number, text in texts if text]
    charges = []
    for number, text in texts:
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            if number == texts[-1][0]:
                break
            raise StateError(
                f"ledger line {number}: not JSON; spending can not be recomputed without it: "
                "restore the log from a copy, or start anew"
            ) from None
        charges.append(_charge(tree, number))
    return tuple(charges)


def ledger_from_lines(
    lines: Iterable[str],
    *,
    delta: float,
    max_epsilon: float | None = None,
    prior: Sequence[Mechanism] = (),
) -> Ledger:
    """The ledger recomputed from its log alone, after `prior` spending.

    A log already over `max_epsilon` is read all the same; the next charge is
    refused. Raises StateError as `charges_from_lines`.
    """
    charged = (charge.mechanism for charge in charges_from_lines(lines))
    return Ledger(delta, max_epsilon, (*prior, *charged))


def _charge(tree: object, number: int) -> Charge:
    if not isinstance(tree, dict) or set(tree) != _KEYS:
        raise StateError(f"ledger line {number}: must hold {sorted(_KEYS)}")
    version, round_number = tree["version"], tree["round"]
    if isinstance(version, bool) or version != LEDGER_VERSION:
        raise StateError(
            f"ledger line {number}: version {version!r:.80} is not readable here; this release "
            f"reads version {LEDGER_VERSION}"
        )
    if round_number is not None and (
        not isinstance(round_number, int) or isinstance(round_number, bool) or round_number < 1
    ):
        raise StateError(f"ledger line {number}: round={round_number!r:.80} must be >= 1 or null")
    try:
        return Charge(mechanism_from_json(tree["charged"]), round_number)
    except TaskError as error:
        raise StateError(f"ledger line {number}: {error}") from None


def _number(value: float) -> str:
    return f"{value:.6g}" if value < math.inf else "infinite"
