"""A long run's memory stays flat, as its benchmark measures it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "long_run.py"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_memory_of_client_and_workers_is_flat_over_500_rounds(workers, tmp_path):
    """Growth of more than 5 % ends the benchmark with status 1."""
    command = [sys.executable, str(BENCHMARK), "--workers", workers]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 50 and rows[-1]["round"] == 500
    assert rows[-1]["open files"] <= rows[5]["open files"] + 2
    assert rows[-1]["checkpoints, % of the time"] < 5
