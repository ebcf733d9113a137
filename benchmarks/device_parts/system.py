"""One system of `./run bench device`, as the benchmark sees its process."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from device_parts.worker_process import WorkerProcess

WORKER = Path(__file__).resolve().parent / "worker.py"


class System(WorkerProcess):
    """A worker process; see `worker.py`. `rounds`: milliseconds of a step, one a round."""

    def __init__(self, name: str, label: str, folder: Path, *, python: Path, core: int):
        self.label = label
        self.rounds: list[float] = []
        super().__init__(python, WORKER, name, folder, core, log=folder / f"{label}.log")

    def run(self, seconds: float) -> None:
        """One round of steps."""
        answer = self.turn(seconds)
        if answer:
            self.rounds.append(statistics.median(answer["milliseconds"]))

    def row(self, workload: str) -> dict[str, Any]:
        """What was measured."""
        rounds = self.rounds or [float("nan")]
        return {
            "system": self.label,
            "workload": workload,
            "ms_min": min(rounds),
            "ms_median": statistics.median(rounds),
            "start_s": self.start_s,
            "peak_mb": self.peak_mb,
            "fails": self.fails,
        }
