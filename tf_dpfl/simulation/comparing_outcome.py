"""What came of one variant of a comparison: its figures, its privacy, its bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.comparing_plans import Variant
from tf_dpfl.simulation.run_folder import RunFolder, read_text

OUTCOME_VERSION = 1

_FILE = "outcome.json"
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that go over the network, without headers.

    Attributes:
      down, up: of one user in one round: the weights, the update.
      once: of one user before the first round, on average: its records, where they are
        brought to one place.
    """

    down: int
    up: int
    once: float


def traffic_of(plan: Plan, *, weights: int) -> Traffic:
    """What federated training of so many weights sends: float32 vectors.

    Where the clip norm adapts, the user's part of the count stands behind its update.
    """
    counted = 1 if plan.privacy.adaptive_clipping else 0
    down, up = _FLOAT_BYTES * weights, _FLOAT_BYTES * (weights + counted)
    return Traffic(down=down, up=up, once=0.0)


@dataclass(frozen=True)
class Outcome:
    """A variant that was trained to its end.

    Attributes:
      variant: which one; `plan` is its plan.
      metrics: one mapping a round, as in its `metrics.jsonl`.
      card: the privacy card as JSON, and `card_text` for people; None without privacy.
      traffic: bytes.
    """

    variant: Variant
    plan: Plan
    metrics: tuple[Mapping[str, Any], ...]
    card: Mapping[str, Any] | None
    card_text: str
    traffic: Traffic

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    @property
    def accuracy(self) -> float:
        """After the last round, on the test split."""
        return float(self.metrics[-1]["accuracy"])

    @property
    def best(self) -> tuple[float, int]:
        """The best accuracy that was measured, and its (first) round."""
        best = max(self._measured, key=lambda m: (m["accuracy"], -m["round"]))
        return float(best["accuracy"]), int(best["round"])

    @property
    def _measured(self) -> list[Mapping[str, Any]]:
        return [m for m in self.metrics if m.get("accuracy") is not None]

    @property
    def seconds(self) -> float:
        """Of all rounds together, evaluation included; not what starting up took."""
        return math.fsum(m["seconds"] for m in self.metrics)

    @property
    def seconds_per_round(self) -> float:
        """The mean."""
        return self.seconds / len(self.metrics)

    @property
    def central_epsilon(self) -> float:
        """Against whoever sees the models, of all rounds; infinite without privacy."""
        if self.card is None:
            return math.inf
        return _or_infinite(self.card["central"]["epsilon_when_all_rounds_are_done"])

    @property
    def local_epsilons(self) -> tuple[float, float]:
        """Against the server: of one report, and of the most a device can make."""
        if self.card is None:
            return math.inf, math.inf
        local = self.card["local"]
        one, every = local["epsilon_one_report"], local["epsilon_all_reports"]
        return _or_infinite(one), _or_infinite(every)

    @property
    def noise_multipliers(self) -> tuple[float | None, float | None]:
        """Standard deviations over the clip norm, which are not to be compared; one is None.

        That of the noise on each round's sum (with the unit "example": on each local step's), 0
        without privacy; and that of the draws which correlated noise is made of.
        """
        if self.card is None:
            return 0.0, None
        noise = self.plan.privacy.noise_multiplier
        return (None, noise) if self.plan.privacy.is_correlated else (noise, None)

    def epsilon_after(self, record: Mapping[str, Any]) -> float:
        """The central epsilon that one line of the metrics states."""
        return _or_infinite(record.get("central_epsilon"))


def keep_outcome(
    folder: Path, *, card: Mapping[str, Any] | None, card_text: str, traffic: Traffic
) -> None:
    """Notes in a variant's folder that it has ended; durable when this returns."""
    content = {
        "version": OUTCOME_VERSION,
        "card": card,
        "card_text": card_text,
        "traffic": vars(traffic),
    }
    write_atomically(folder / _FILE, (json.dumps(content, indent=1) + "\n").encode())


def has_ended(folder: Path) -> bool:
    """Whether `keep_outcome` was called for this folder."""
    return (folder / _FILE).exists()


def read_outcome(folder: Path, variant: Variant) -> Outcome:
    """The outcome of a variant that has ended.

    Raises StateError when a file is damaged or of another version, or a figure is missing.
    """
    file = folder / _FILE
    metrics = RunFolder(folder, b"", False).read_metrics()
    try:
        content = json.loads(read_text(file))
        if content["version"] != OUTCOME_VERSION:
            raise StateError(
                f"{file}: version {content['version']!r:.80} is not readable here; this release "
                f"reads version {OUTCOME_VERSION}: finish it with the release that began it"
            )
        sent = content["traffic"]
        traffic = Traffic(int(sent["down"]), int(sent["up"]), float(sent["once"]))
        card, text = content["card"], content["card_text"]
        plan = variant.plan
        if plan is None or len(metrics) != plan.server.rounds:
            raise ValueError("metrics.jsonl has not a line for each round")
        if variant.is_private != isinstance(card, dict) or not isinstance(text, str):
            raise ValueError("the privacy card is not that of this variant")
        outcome = Outcome(variant, plan, tuple(metrics), card, text, traffic)
        _require_figures(outcome)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(
            f"{file}: not the outcome of a variant: {error!r:.200}; restore the folder, or remove "
            "it: the variant is then trained again (on private data that is one more release)"
        ) from None
    return outcome


def _require_figures(outcome: Outcome) -> None:
    """Raises what is wrong with figures that a report would fail at."""
    _ = outcome.accuracy, outcome.best, outcome.seconds
    _ = outcome.central_epsilon, outcome.local_epsilons
    for record in outcome.metrics:
        outcome.epsilon_after(record)


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else float(value)
