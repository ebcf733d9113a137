"""Commands one after the other, from a plan to devices, for the tests of the whole path."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(folder, module, *arguments, name):
    """One command to its end; its output, which goes through a file: TFF's worker outlives it."""
    log = folder / f"{name}.log"
    with open(log, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    return log.read_text()


def events(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def serve_to_devices(folder, devices):
    """Serves `task` to so many devices with `clients` as data until it is done; their events."""
    state = folder / "state"
    with open(folder / "server.log", "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "run", "task", "--state", "state", "--tokens",
             str(devices), "--start-when", str(devices), "--poll", "0.05", "--exit-when-done"],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (state / "url.txt").exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        url = (state / "url.txt").read_text().strip()
        log = run(
            folder, "mobile_client.cli", "fleet", "--json", "--count", devices, "--processes", 2,
            "--server", url, "--task-key", "task/public_key.txt", "--data", "clients",
            "--tokens", "state/tokens.txt", "--state", "devices", name="fleet",
        )  # fmt: skip
        assert server.wait(60) == 0, (folder / "server.log").read_text()[-3000:]
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(60)
    return events(log)
