"""One system of `./run bench simulation`, as the benchmark sees its process."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from device_parts.environments import variables

WORKER = Path(__file__).resolve().parent / "worker.py"


class System:
    """A worker process, spoken to in JSON lines; see `worker.py`.

    `cpu`: CPU seconds of a round, one figure a turn; `seconds`: wall time of rounds.
    """

    def __init__(self, name: str, folder: Path, *, users: int, python: Path, cores: str):
        self.label = f"{name}, {len(cores.split(','))} core{'s' * (',' in cores)}"
        self.name, self.users, self.workload = name, users, folder.name
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.start_s = self.peak_mb = float("nan")
        self._log = folder / f"{self.label}.log"
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [python, WORKER, name, folder, cores, repr(time.monotonic())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables(),
                text=True,
            )
        self.fails = self._answer().get("fails", "")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            return {"fails": self._log.read_text()[-300:] or "the process ended"}
        answer = json.loads(line)
        self.start_s = answer.get("start_s", self.start_s)
        self.peak_mb = answer.get("peak_mb", self.peak_mb)
        return answer

    def run(self, seconds: float) -> None:
        """One turn of rounds."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "fails" in answer:
            self.fails = answer["fails"]
        else:
            self.seconds += answer["seconds"]
            self.cpu.append(answer["cpu"])

    def end(self) -> None:
        """Ends the process, which ends what it started."""
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

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
