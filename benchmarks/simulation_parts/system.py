"""One system of `./run bench simulation`, as the benchmark sees its process."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from device_parts.worker_process import WorkerProcess

WORKER = Path(__file__).resolve().parent / "worker.py"


class System(WorkerProcess):
    """A worker process; see `worker.py`.

    `cpu`: CPU seconds of a round, one figure a turn; `seconds`: wall time of rounds.
    """

    def __init__(self, name: str, folder: Path, *, users: int, python: Path, cores: str):
        self.label = f"{name}, {len(cores.split(','))} core{'s' * (',' in cores)}"
        self.name, self.users, self.workload = name, users, folder.name
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        log = folder / f"{self.label}.log"
        one_thread = "," not in cores
        super().__init__(python, WORKER, name, folder, cores, log=log, one_thread=one_thread)

    def run(self, seconds: float) -> None:
        """One turn of rounds."""
        answer = self.turn(seconds)
        if answer:
            self.seconds += answer["seconds"]
            self.cpu.append(answer["cpu"])

    def row(self) -> dict[str, Any]:
        """What was measured."""
        seconds = statistics.median(self.seconds or [float("nan")])
        return {
            "system": self.label,
            "workload": self.workload,
            "seconds_a_round": seconds,
            "users_a_second": self.users / seconds,
            "cpu_seconds_a_round": statistics.median(self.cpu or [float("nan")]),
            "peak_mb": self.peak_mb,
            "start_s": self.start_s,
            "fails": " ".join(self.fails.split())[-120:],
        }
