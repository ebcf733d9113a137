"""Prints README's tables from a file of `./run bench device`: `python summary.py FILE.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RATIOS = {
    "DP-SGD / SGD": "DP / SGD",
    "SGD / full TF's SGD": "SGD / TF",
    "tf-privacy / DP-SGD": "tf-privacy / DP",
    "DPModel / DP-SGD": "DPModel / DP",
    "Opacus / DP-SGD": "Opacus / DP",
    "Opacus, ghost / DP-SGD": "Opacus ghost / DP",
    "noise / SGD": "noise / SGD",
}
Rows = Sequence[Mapping[str, Any]]


def ratio_table(rows: Rows, runtime: str) -> str:
    """One line a workload: times of this runtime and the ratios; a missed target is bold."""
    ms = {(row["system"], row["workload"]): row["ms_min"] for row in rows if "ms_min" in row}
    targets = {
        (row["workload"], row["target"]): row
        for row in rows
        if "target" in row and row["system"] == runtime
    }
    heads = [runtime, "SGD, ms", "DP-SGD, ms", "noise, ms", *RATIOS.values()]
    lines = [heads, ["---"] * len(heads)]
    for workload in dict.fromkeys(workload for workload, _ in targets):
        times = [
            _number(ms[f"{runtime} {name}", workload])
            for name in ("tflite_sgd", "tflite_dp", "noise")
        ]
        cells = [_cell(targets.get((workload, figure))) for figure in RATIOS]
        lines.append([workload.replace("-", ", "), *times, *cells])
    return _markdown(lines)


def process_table(rows: Rows) -> str:
    """One line a system: the least and the most of its memory and start-up over workloads."""
    lines = [["system", "peak memory, MB", "start-up, s"], ["---"] * 3]
    measured = [row for row in rows if row.get("peak_mb") is not None]
    for system in dict.fromkeys(row["system"] for row in measured):
        own = [row for row in measured if row["system"] == system]
        memory, start = (sorted(row[key] for row in own) for key in ("peak_mb", "start_s"))
        span = f"{memory[0]:.0f} to {memory[-1]:.0f}"
        lines.append([system, span, f"{start[0]:.2g} to {start[-1]:.2g}"])
    return _markdown(lines)


def file_table(rows: Rows) -> str:
    """One line a workload: bytes of the files and the bound."""
    bounds = {r["workload"]: r for r in rows if r.get("target") == "bytes / bound"}
    names = ("client_bytes", "inference_bytes", "weights_bytes")
    heads = ["workload", *(f"{name.split('_')[0]}, kB" for name in names), "part of the bound"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        if "client_bytes" in row:
            sizes = [f"{row[name] / 1000:.0f}" for name in names]
            lines.append([row["workload"], *sizes, _cell(bounds[row["workload"]])])
    return _markdown(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    return f"**{_number(row['value'])}**" if row["met"] == "NO" else _number(row["value"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    for name in ("ai-edge-litert", "tflite-runtime"):
        print(ratio_table(found, name), end="\n\n")
    print(process_table(found), end="\n\n")
    print(file_table(found))
