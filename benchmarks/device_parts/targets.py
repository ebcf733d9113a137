"""The targets of `./run bench device`: ratios from one run, and whether they are met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

DP_OVER_SGD_AT_MOST = {"mlp": 1.5, "text": 1.5, "gru": 1.5, "cnn": 1.8}
SGD_OVER_TF_AT_MOST = {"mlp": 1.0, "text": 1.0, "gru": 1.0, "cnn": 1.3}
TF_PRIVACY_OVER_DP_AT_LEAST = 10.0
OPACUS_OVER_DP_AT_LEAST = 1.0
EXTRA_BYTES = 200_000
CNN_NOISE_OVER_SGD_AT_MOST = 1.0


def targets(
    workload: str,
    rounds: Mapping[str, Sequence[float]],
    facts: Mapping[str, Any],
    *,
    runtimes: Sequence[str],
) -> list[dict[str, Any]]:
    """One row a target; `met` is "-" where a ratio has none, or the peer failed.

    Args:
      workload: MODEL-BATCH.
      rounds: for each system that was tried the time of a step in each round,
        in milliseconds; empty when it failed.
      facts: facts.json of that workload.
      runtimes: the interpreters that were measured.
    """
    model = workload.split("-")[0]
    found: list[dict[str, Any]] = []

    def add(system: str, figure: str, value: float, limit: float | None, *, most: bool) -> None:
        missing = value != value or limit is None
        holds = not missing and (value <= limit if most else value >= limit)
        found.append(
            {
                "system": system,
                "workload": workload,
                "target": figure,
                "value": value,
                "limit": "-" if limit is None else f"{'<=' if most else '>='} {limit:g}",
                "met": "-" if missing else "yes" if holds else "NO",
            }
        )

    def compare(
        figure: str, over: str, under: str, limit: float | None, *, most: bool = True
    ) -> None:
        if over in rounds:
            add(runtime, figure, _ratio(rounds[over], rounds[under]), limit, most=most)

    for runtime in runtimes:
        sgd, dp, noise = (f"{runtime} {name}" for name in ("tflite_sgd", "tflite_dp", "noise"))
        compare("DP-SGD / SGD", dp, sgd, DP_OVER_SGD_AT_MOST.get(model))
        compare("SGD / full TF's SGD", sgd, "tf_sgd", SGD_OVER_TF_AT_MOST.get(model))
        least = TF_PRIVACY_OVER_DP_AT_LEAST
        compare("tf-privacy / DP-SGD", "tf_privacy_optimizer", dp, least, most=False)
        compare("DPModel / DP-SGD", "tf_privacy_dpmodel", dp, None, most=False)
        least = OPACUS_OVER_DP_AT_LEAST
        compare("Opacus / DP-SGD", "opacus", dp, least, most=False)
        compare("Opacus, ghost / DP-SGD", "opacus_ghost", dp, least, most=False)
        limit = CNN_NOISE_OVER_SGD_AT_MOST if model == "cnn" else None
        compare("noise / SGD", noise, sgd, limit)
    bound = facts["inference_bytes"] + 3 * facts["weights_bytes"] + EXTRA_BYTES
    add("client.tflite", "bytes / bound", facts["client_bytes"] / bound, 1.0, most=True)
    return found


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median over the rounds: both of a pair saw the machine at the same speed."""
    return statistics.median([a / b for a, b in zip(over, under)] or [float("nan")])
