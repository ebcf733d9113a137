"""A comparison as files for programs: two CSV tables and everything as JSON.

`compare.csv` is in long form, one row for each variant and round; `variants.csv` has one row
for each variant, those that were not trained too. Both have the column `variant`. An
infinite epsilon is `inf`, what was not measured is empty.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.simulation.central_run import CentralSchedule
from tf_dpfl.simulation.comparing_outcome import Outcome
from tf_dpfl.simulation.comparing_plans import CENTRAL, Comparison

COMPARISON_VERSION = 1

ROUND_COLUMNS = (
    "variant",
    "round",
    "accuracy",
    "loss",
    "central_epsilon",
    "reports",
    "examples",
    "nonfinite",
    "released",
    "clip_norm",
    "seconds",
)


@dataclass(frozen=True)
class Found:
    """Everything that a comparison's files tell.

    Attributes:
      comparison: what was compared.
      outcomes: of the trained variants.
      not_compared: name and reason of the others.
      schedule: how the central variant goes through the records.
      test_examples: that every accuracy is measured on.
      privacy, privacy_in_words: what the comparison costs.
    """

    comparison: Comparison
    outcomes: tuple[Outcome, ...]
    not_compared: Mapping[str, str]
    schedule: CentralSchedule
    test_examples: int
    privacy: Mapping[str, Any]
    privacy_in_words: tuple[str, ...]


def write_tables(folder: Path, found: Found) -> None:
    """Writes `compare.csv`, `variants.csv` and `compare.json` into `folder`."""
    write_atomically(folder / "compare.csv", _csv(ROUND_COLUMNS, round_rows(found.outcomes)))
    rows = variant_rows(found)
    columns = max((tuple(row) for row in rows), key=len)
    write_atomically(folder / "variants.csv", _csv(columns, rows))
    text = json.dumps(to_json(found), indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "compare.json", text.encode())


def round_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One row for each variant and round, as its `metrics.jsonl` has them."""
    return [
        {**record, "variant": outcome.name, "central_epsilon": outcome.epsilon_after(record)}
        for outcome in outcomes
        for record in outcome.metrics
    ]


def variant_rows(found: Found) -> list[dict[str, Any]]:
    """One row for each variant; of those not compared their name and the reason."""
    rows = [figures(outcome) for outcome in found.outcomes]
    titles = {variant.name: variant.title for variant in found.comparison.variants}
    rows += [
        {"variant": name, "title": titles[name], "not_compared_because": reason}
        for name, reason in found.not_compared.items()
    ]
    return rows


def figures(outcome: Outcome) -> dict[str, Any]:
    """Everything about one variant that is not of a single round."""
    plan, card, local = outcome.plan, outcome.card, outcome.local_epsilons
    noise, noise_of_draws = outcome.noise_multipliers
    best, best_round = outcome.best
    is_central = outcome.name == CENTRAL
    return {
        "variant": outcome.name,
        "title": outcome.variant.title,
        "final_accuracy": outcome.accuracy,
        "best_accuracy": best,
        "best_round": best_round,
        "central_epsilon": outcome.central_epsilon,
        "local_epsilon_one_report": local[0],
        "local_epsilon_all_reports": local[1],
        "delta": plan.privacy.delta if card else None,
        "unit": plan.privacy.unit if card else None,
        "adjacency": card["central"]["adjacency"] if card else None,
        "noise": plan.privacy.noise if card else None,
        "mechanism": plan.privacy.mechanism if card else None,
        "bands": plan.bands if card and plan.privacy.mechanism == "banded" else None,
        "noise_multiplier": noise,
        "noise_multiplier_of_correlated_draws": noise_of_draws,
        "clip_norm": plan.privacy.clip_norm if card else None,
        "sampling": None if is_central else plan.clients.sampling,
        "rounds": len(outcome.metrics),
        "seconds": outcome.seconds,
        "seconds_per_round": outcome.seconds_per_round,
        "bytes_down_per_user_and_round": outcome.traffic.down,
        "bytes_up_per_user_and_round": outcome.traffic.up,
        "bytes_up_once_per_user": outcome.traffic.once,
        "not_compared_because": None,
    }


def to_json(found: Found) -> dict[str, Any]:
    """All of it as plain JSON values; an infinite epsilon is null."""
    comparison, schedule = found.comparison, found.schedule
    # Nobody's noise covers the number of their records, which central training alone needs.
    is_central = any(outcome.name == CENTRAL for outcome in found.outcomes)
    return {
        "version": COMPARISON_VERSION,
        "data": comparison.data_is,
        "target_epsilon": finite_or_none(comparison.target_epsilon),
        "delta": comparison.plan.privacy.delta,
        "unit": comparison.plan.privacy.unit,
        "rounds": comparison.plan.server.rounds,
        "test_examples": found.test_examples,
        "central_training": {
            "records": schedule.records,
            "passes": schedule.passes,
            "batch_size": schedule.batch_size,
            "steps": schedule.steps_after(schedule.rounds),
        }
        if is_central
        else None,
        "variants": [
            {
                **_finite(figures(outcome)),
                "privacy_card": outcome.card,
                "metrics": [_finite(record) for record in outcome.metrics],
            }
            for outcome in found.outcomes
        ],
        "not_compared": dict(found.not_compared),
        "privacy": dict(found.privacy),
        "privacy_in_words": list(found.privacy_in_words),
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same for JSON, which has no infinities, nor the loss of a model that diverged."""
    return {
        name: finite_or_none(value) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None is written as an empty field
    return text.getvalue().encode()
