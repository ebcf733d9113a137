"""Running the project's commands from the demo: in order, or in the background."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_BIN = Path(sys.executable).parent
DPFL = _BIN / "dpfl"
SERVER = _BIN / "dpfl-server"
# Devices have an environment of their own, without TensorFlow.
DEVICE = Path(os.environ.get("DPFL_DEVICE_VENV", ROOT / ".venv-device")) / "bin" / "dpfl-device"


def announce(text: str) -> None:
    """One line for the person who watches."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def run(command: Path, *arguments: Any, log: Path | None = None) -> None:
    """Runs a command to its end; ends the demo when it fails."""
    words = [str(command), *map(str, arguments)]
    if log is None:
        status = subprocess.run(words, stdin=subprocess.DEVNULL).returncode
    else:
        with open(log, "wb") as file:
            status = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file).returncode
    if status != 0:
        where = f" (its output is in {log})" if log else ""
        raise SystemExit(f"demo: {' '.join(words)} ended with status {status}{where}")


class Background:
    """A command that runs beside the demo and tells events as JSON lines in `log`."""

    def __init__(self, command: Path, *arguments: Any, log: Path):
        self._log = log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [str(command), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=file
            )

    def wait_for(self, event: str, timeout_s: float = 60) -> dict[str, Any]:
        """The first event of that name."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for entry in read_json_lines(self._log):
                if entry["event"] == event:
                    return entry
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"demo: no {event!r} in {self._log}")

    def finish(self, timeout_s: float) -> None:
        """Waits for its own end, which must be a good one."""
        status = self._process.wait(timeout_s)
        if status != 0:
            raise SystemExit(f"demo: the server ended with status {status}; see {self._log}")

    def stop(self) -> None:
        """Ends it if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file."""
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
