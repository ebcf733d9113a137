"""The command `dpfl tune`: what it refuses, what it says, a search from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tf_dpfl.protocol.plan_files import load_plan

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"


def test_the_user_must_say_whose_data_these_are(refused, plan_file, tmp_path):
    said = refused("tune", plan_file, "--over", "clip_norm=1,2", "--out", tmp_path / "o")
    assert "--data" in said and "required" in said


def test_every_fault_is_one_line_and_leaves_nothing(refused, plan_file, tmp_path):
    out = tmp_path / "o"
    said = refused(
        *("tune", plan_file, "--out", out, "--data", "public"),
        *("--over", "clip_norm=0,1", "colour=1,2", "--over", "clients_per_round=10,70"),
        faults=2,
    )
    assert all(line.startswith("dpfl: --over") for line in said.splitlines())
    assert not out.exists()


@pytest.mark.parametrize(
    "option", [("--mean-tries", "0"), ("--score-noise", "nan"), ("--points", "0"), ("--folds", "x")]
)
def test_numbers_out_of_range_are_refused(refused, plan_file, tmp_path, option):
    command = ("tune", plan_file, "--over", "clip_norm=1,2", "--out", tmp_path / "o")
    assert option[0] in refused(*command, "--data", "public", *option)


@pytest.mark.slow
def test_a_search_on_the_digits_example(tmp_path):
    out = tmp_path / "found"
    command = [
        *(sys.executable, "-m", "tf_dpfl.cli.main", "tune", str(DIGITS), "--data", "private"),
        *("--over", "clip_norm=0.1..3", "learning_rate=0.1,0.5", "--points", "2"),
        *("--set", "server.rounds=2", "--out", str(out)),
    ]
    with open(tmp_path / "text", "wb") as text:
        done = subprocess.run(command, stdout=text, stderr=subprocess.STDOUT, timeout=300)
    said = (tmp_path / "text").read_text()
    assert done.returncode == 0, said
    assert "local_training.learning_rate in 0.1, 0.5 (the plan has it in [server] too)" in said
    assert "This search costs epsilon" in said and "try 4/4" in said and "rank" in said
    best = load_plan(out / "best.toml")
    assert (best.privacy.clip_norm, best.local_training.learning_rate) in {
        (c, r) for c in (0.1, 3.0) for r in (0.1, 0.5)
    }
    with open(tmp_path / "lines", "wb") as lines:
        again = subprocess.run([*command, "--json"], stdout=lines, timeout=300)
    assert again.returncode == 0
    events = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [e["event"] for e in events] == ["search", *["try"] * 4, "finished"]  # nothing ran again
    assert events[-1]["ranking"] == json.loads((out / "tune.json").read_text())["ranking"]
