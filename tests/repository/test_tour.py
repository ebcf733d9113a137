"""The README's tour: every command of it and its Python, run in order as a reader would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tf_dpfl.protocol.plan_files import load_plan

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
TOUR_PORT = "8765"

# Stands in for `./run` in the tour's folder: the same commands, nothing installed.
RUN = """#!/bin/sh
set -e
command=$1
shift
folder={scripts}
[ "$command" != dpfl-device ] || [ ! -x {device} ] || folder={device_scripts}
exec "$folder/$command" "$@"
"""


def tour_commands() -> str:
    """The shell blocks that the README marks as its tour."""
    blocks = re.findall(r"<!-- tour -->\n```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    return "\n".join(blocks)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_every_command_of_the_tour_is_a_command_of_run():
    jobs = set(re.findall(r"^\./run (\S+)", tour_commands(), flags=re.MULTILINE))
    assert jobs == {"dpfl", "dpfl-server", "dpfl-device"}


@pytest.mark.slow
def test_tour_runs_from_end_to_end(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = tmp_path / "run"
    device_scripts = ROOT / ".venv-device" / "bin"
    run.write_text(
        RUN.format(
            scripts=Path(sys.executable).parent,
            device=device_scripts / "dpfl-device",
            device_scripts=device_scripts,
        )
    )
    run.chmod(0o755)
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (tmp_path / "snippet.py").write_text(snippet)
    script = "set -e\n" + tour_commands().replace(TOUR_PORT, free_port())
    script += f"\n{sys.executable} snippet.py\n"
    # To a file: a worker left behind would hold a pipe open.
    with (tmp_path / "log").open("w") as log:
        tour = subprocess.Popen(
            ["sh", "-c", script],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DPFL_SIGNING_KEY": str(tmp_path / "signing.key")},
            start_new_session=True,
        )
        try:
            status = tour.wait(timeout=600)
        finally:  # a tour that breaks off leaves its server behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(tour.pid, signal.SIGTERM)
            tour.wait()
    log_text = (tmp_path / "log").read_text()
    assert status == 0, log_text[-4000:]
    assert "Traceback" not in log_text
    build = tmp_path / "build"
    assert (build / "from_python" / "model.keras").is_file()
    metrics = (build / "run" / "metrics.jsonl").read_text().splitlines()
    rounds = load_plan(ROOT / "examples" / "digits.toml").server.rounds
    assert json.loads(metrics[-1])["round"] == len(metrics) == rounds
    latest = json.loads((build / "state" / "latest.json").read_text())
    assert latest["released_rounds"] >= 1
    for name in ("digits.keras", "digits.tflite", "privacy.json"):
        assert (build / "model" / name).is_file()
    card = json.loads((build / "model" / "privacy.json").read_text())
    # The simulation's rounds and those of the devices, whatever their noise.
    assert sum(entry["rounds"] for entry in card["spending"]) >= rounds + 5
