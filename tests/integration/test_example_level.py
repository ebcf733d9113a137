"""The example plan of unit "example" by its commands: simulate, export, devices, cards."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "examples" / "digits_example_level.toml"
DEVICES = 6


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


@pytest.mark.slow
def test_the_example_plan_runs_from_simulation_to_devices(tmp_path):
    key = tmp_path / "author.key"
    run(tmp_path, "tf_dpfl.cli.main", "simulate", PLAN, "--out", "run", "--set", "server.rounds=3",
        name="simulate")  # fmt: skip
    small = ("server.rounds=2", f"clients.population={DEVICES}",
             f"clients.clients_per_round={DEVICES}", "privacy.smallest_cohort=4")  # fmt: skip
    sets = [word for text in small for word in ("--set", text)]
    export = ("export", "client", "run", "--signing-key", key)
    told = run(tmp_path, "tf_dpfl.cli.main", *export, "--out", "task", *sets, "--json",
               name="export")  # fmt: skip
    (written,) = events(told)
    assert written["dp_method"] == "one_pass" and "sound rule" in written["dp_method_reason"]
    spoken = run(tmp_path, "tf_dpfl.cli.main", *export, "--out", "again", *sets, name="again")
    assert "dp method one_pass, dp method reason every place" in spoken
    run(tmp_path, "tf_dpfl.cli.main", "data", "write", "run", "--clients", f"0:{DEVICES}",
        "--out", "clients", name="data")  # fmt: skip

    state = tmp_path / "state"
    with open(tmp_path / "server.log", "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "run", "task", "--state", "state", "--tokens",
             str(DEVICES), "--start-when", str(DEVICES), "--poll", "0.05", "--exit-when-done"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (state / "url.txt").exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        url = (state / "url.txt").read_text().strip()
        log = run(
            tmp_path, "mobile_client.cli", "fleet", "--json", "--count", DEVICES, "--processes", 2,
            "--server", url, "--task-key", "task/public_key.txt", "--data", "clients",
            "--tokens", "state/tokens.txt", "--state", "devices", name="fleet",
        )  # fmt: skip
        assert server.wait(60) == 0, (tmp_path / "server.log").read_text()[-3000:]
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(60)
    assert events(log)[-1]["reports_sent"] == 2 * DEVICES

    card = json.loads(run(tmp_path, "tf_dpfl.cli.main", "privacy", "state", "--json", name="card"))
    spent = [
        ExampleGaussianEpochs(4.0, "poisson", 0.5, 3, 1),  # simulated
        ExampleGaussianEpochs(4.0, "poisson", 1.0, 2, 1),  # on devices
    ]
    assert card["unit"] == "example" and card["rounds_done"] == 2
    assert card["spending"] == [mechanism.to_json() for mechanism in spent]
    assert card["central"]["epsilon"] == central_epsilon(spent, delta=1e-4)
    assert card["central"]["epsilon"] <= written["central_epsilon"] * (1 + 1e-9)
    status = json.loads(
        run(tmp_path, "mobile_client.cli", "status", "--json", "--state", "devices/device_00000",
            name="status")
    )  # fmt: skip
    assert status["local_epsilon"] == card["local"]["epsilon_all_reports"]
    run(tmp_path, "tf_dpfl.cli.main", "export", "model", "state", "--format", "keras", "--out",
        "model/digits.keras", "--signing-key", key, name="model")  # fmt: skip
    kept = json.loads((tmp_path / "model" / "privacy.json").read_text())
    assert kept["unit"] == "example" and kept["spending"] == card["spending"]
