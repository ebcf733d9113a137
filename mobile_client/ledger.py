"""A device's own ledger as plain data: the rounds it spent privacy on.

A report is charged before it is sent and is never refunded: once its bytes may
have left the device, they count, whatever the server says later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.wire import is_hex

CHARGED = "charged"
"""Spent; the server has not confirmed it yet."""
SENT = "sent"
"""Spent and accepted by the server."""
DROPPED = "dropped"
"""Spent, but the round was gone; never sent again."""

_OUTCOMES = (CHARGED, SENT, DROPPED)


@dataclass(frozen=True)
class Report:
    """One round's report: its number, the SHA-256 of its bytes, its outcome."""

    round_number: int
    sha256: str
    outcome: str = CHARGED


@dataclass(frozen=True)
class DeviceLedger:
    """All reports this device was ever charged for in one task, in order."""

    reports: tuple[Report, ...] = ()

    @property
    def count(self) -> int:
        """Number of charged reports; what the local epsilon is computed from."""
        return len(self.reports)

    def outcomes(self, outcome: str) -> int:
        """Number of reports with this outcome."""
        return sum(report.outcome == outcome for report in self.reports)

    def find(self, round_number: int) -> Report | None:
        """The report of that round, or None."""
        for report in self.reports:
            if report.round_number == round_number:
                return report
        return None

    def charge(self, *, round_number: int, sha256: str) -> DeviceLedger:
        """The ledger with this report in it; unchanged when it is already there.

        Raises StateError when the round was charged for other bytes: a second
        update of one round must never exist.
        """
        known = self.find(round_number)
        if known is None:
            return DeviceLedger((*self.reports, Report(round_number, sha256)))
        if known.sha256 != sha256:
            raise StateError(
                f"round {round_number} was charged for other bytes than those in the outbox; "
                "the outbox was changed from outside: remove that file, the round is skipped"
            )
        return self

    def close(self, *, round_number: int, outcome: str) -> DeviceLedger:
        """The ledger with the final outcome of a charged round."""
        if self.find(round_number) is None:
            raise StateError(f"round {round_number} was never charged; it cannot be closed")
        return DeviceLedger(
            tuple(
                replace(report, outcome=outcome) if report.round_number == round_number else report
                for report in self.reports
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values; read back by `from_json`."""
        return [
            {"round": report.round_number, "sha256": report.sha256, "outcome": report.outcome}
            for report in self.reports
        ]

    @classmethod
    def from_json(cls, entries: Any) -> DeviceLedger:
        """Raises StateError unless `entries` is what `to_json` writes."""
        if not isinstance(entries, list):
            raise StateError("ledger: reports must be a list")
        ledger = cls(tuple(_report(entry) for entry in entries))
        if len({report.round_number for report in ledger.reports}) != ledger.count:
            raise StateError("ledger: a round stands in it twice")
        return ledger


def _report(entry: Any) -> Report:
    if not isinstance(entry, Mapping):
        raise StateError(f"ledger: entry {entry!r} must be an object")
    number, digest, outcome = entry.get("round"), entry.get("sha256"), entry.get("outcome")
    if not isinstance(number, int) or isinstance(number, bool) or not number >= 1:
        raise StateError(f"ledger: round={number!r} must be an integer >= 1")
    if not is_hex(digest, digits=64) or outcome not in _OUTCOMES:
        raise StateError(f"ledger: the entry of round {number} is malformed")
    return Report(number, str(digest), str(outcome))
