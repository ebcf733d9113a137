"""A benchmark's worker in a process of its own, spoken to in JSON lines."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from device_parts.environments import variables

_END_S = 30


class WorkerProcess:
    """Runs `command` and the moment of its start (monotonic seconds) as last argument.

    Every library gets one thread, or with `one_thread` false as many as it chooses.

    The worker answers once when it is ready and once for every line of seconds it is
    given; answers may hold `start_s`, `peak_mb` and, when it can not go on, `fails`.
    """

    def __init__(self, *command: Any, log: Path, one_thread: bool = True):
        self.start_s = self.peak_mb = float("nan")
        self._log = log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [*map(str, command), repr(time.monotonic())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables(one_thread=one_thread),
                text=True,
            )
        self.fails = ""
        self._answer()

    def turn(self, seconds: float) -> dict[str, Any]:
        """What the worker measured in about so many seconds; empty when it failed."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the process, which ends what it started."""
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            answer = json.loads(line)
        else:
            answer = {"fails": self._log.read_text()[-300:] or "the process ended"}
        self.start_s = answer.get("start_s", self.start_s)
        self.peak_mb = answer.get("peak_mb", self.peak_mb)
        if "fails" in answer:
            self.fails = answer["fails"]
            return {}
        return answer
