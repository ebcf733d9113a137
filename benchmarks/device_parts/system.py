"""One system of `./run bench device`, as the benchmark sees its process."""

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
    """A worker process, spoken to in JSON lines; see `worker.py`."""

    def __init__(self, name: str, label: str, folder: Path, *, python: Path, core: int):
        self.label = label
        self.rounds: list[float] = []
        self.start_s = self.peak_mb = float("nan")
        self._log = folder / f"{label}.log"
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [python, WORKER, name, folder, str(core), repr(time.monotonic())],
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
        """One round of steps."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "fails" in answer:
            self.fails = answer["fails"]
        else:
            self.rounds.append(statistics.median(answer["milliseconds"]))

    def end(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

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
