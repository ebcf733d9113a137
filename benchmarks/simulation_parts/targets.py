"""The targets of `./run bench simulation`: ratios from one run, and whether they are met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from simulation_parts.system import System

# CPU seconds of a peer's round over ours, at least.
PEERS = {
    ("stock_functional", "mlp"): 10.0,
    ("stock_functional", "cnn"): 8.5,
    ("pfl", "mlp"): 3.0,
    ("pfl", "cnn"): 4.0,
}
LOOP_AT_MOST = 1.3
TWO_CORES_AT_LEAST = 1.7
EXAMPLE_LEVEL_AT_MOST = 4.0


def targets(systems: Sequence[System]) -> list[dict[str, Any]]:
    """One row a ratio whose two systems were both measured.

    CPU ratios are the median over the turns: both of a pair saw the machine alike.
    """
    found: list[dict[str, Any]] = []
    measured = {(s.workload, s.label): s for s in systems if s.cpu}

    def add(workload: str, target: str, value: float, limit: float, *, most: bool) -> None:
        holds = value <= limit if most else value >= limit
        sign = "<=" if most else ">="
        found.append(
            {
                "workload": workload,
                "target": target,
                "value": value,
                "limit": f"{sign} {limit:g}",
                "met": "yes" if holds else "NO",
            }
        )

    def pair(first: tuple[str, str], second: tuple[str, str]) -> tuple[System, System] | None:
        both = measured.get(first), measured.get(second)
        return None if None in both else both

    def cpu(over: System, under: System) -> float:
        return statistics.median([a / b for a, b in zip(over.cpu, under.cpu)])

    for model in ("mlp", "cnn"):
        workload = f"{model}-user-50"
        ours = (workload, "tf_dpfl, 1 core")
        for (peer, of), limit in PEERS.items():
            both = pair((workload, f"{peer}, 1 core"), ours) if of == model else None
            if both:
                add(workload, f"{peer} / tf_dpfl, CPU", cpu(*both), limit, most=False)
        both = pair(ours, (workload, "tf_loop, 1 core"))
        if both:
            add(workload, "tf_dpfl / tf_loop, CPU", cpu(*both), LOOP_AT_MOST, most=True)
    examples = ("cnn-example-50", "tf_dpfl, 1 core")
    both = pair(examples, ("cnn-user-50", "tf_dpfl, 1 core"))
    if both:
        limit = EXAMPLE_LEVEL_AT_MOST
        add(examples[0], "example-level / plain SGD, CPU", cpu(*both), limit, most=True)
    both = pair((examples[0], "opacus, 1 core"), examples)
    if both:
        add(examples[0], "opacus / tf_dpfl, CPU", cpu(*both), 1.0, most=False)
    both = pair(("cnn-user-200", "tf_dpfl, 1 core"), ("cnn-user-200", "tf_dpfl, 2 cores"))
    if both:
        speedup = statistics.median(both[0].seconds) / statistics.median(both[1].seconds)
        add("cnn-user-200", "1 core / 2 cores, time", speedup, TWO_CORES_AT_LEAST, most=False)
    return found
