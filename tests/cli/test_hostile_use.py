"""`dpfl` started by a clumsy user: closed or full output, folders in the way, own models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tf_dpfl.cli.main import main

MODEL = """
import tensorflow as tf
def mine(input_shape, classes):
    return tf.keras.Sequential([tf.keras.Input(input_shape), tf.keras.layers.Flatten(),
                                tf.keras.layers.Dense(classes)])
"""


def dpfl_in_shell(command, **kwargs):
    """Runs `command`, in which $DPFL starts the program."""
    program = f"{sys.executable} -m tf_dpfl.cli.main"
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        ["bash", "-c", f"export PYTHONPATH={root}; {command.replace('$DPFL', program)}"],
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


def one_line(text):
    (line,) = text.splitlines()
    return line


def test_full_disk_behind_the_output_is_one_line(plan_file):
    done = dpfl_in_shell(f"$DPFL privacy {plan_file} > /dev/full")
    assert done.returncode == 2
    assert one_line(done.stderr) == "dpfl: writing a file or the output: No space left on device"


def test_closed_standard_output_is_no_fault(plan_file):
    done = dpfl_in_shell(f"$DPFL privacy {plan_file} >&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("place", ["file/below", "a" * 300])
@pytest.mark.parametrize("command", [["data", "write"], ["simulate"]])
def test_a_folder_that_cannot_be_made_is_one_line(plan_file, tmp_path, capsys, place, command):
    (tmp_path / "file").touch()
    assert main([*command, str(plan_file), "--out", str(tmp_path / place)]) == 2
    assert one_line(capsys.readouterr().err).startswith("dpfl: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_data_write_leaves_no_folder_when_the_test_file_fails(plan_file, tmp_path, refused):
    (tmp_path / "file").touch()
    argv = ["data", "write", plan_file, "--out", tmp_path / "clients", "--test"]
    refused(*argv, tmp_path / "file" / "test.npz")
    refused(*argv, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("beside", ["plan", "current folder"])
def test_models_import_from_the_plans_and_the_current_folder(plan_file, tmp_path, beside):
    plan = tmp_path / "plans" / "plan.toml"
    here = tmp_path / "here"
    plan.parent.mkdir()
    here.mkdir()
    text = plan_file.read_text().replace('"linear"', '"mine:mine"')
    plan.write_text(text.replace("rounds = 10", "rounds = 1"))
    ((plan.parent if beside == "plan" else here) / "mine.py").write_text(MODEL)
    done = dpfl_in_shell(f"$DPFL simulate {plan} --out {tmp_path}/run --json", cwd=here)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events == [
        "imported",
        "preflight",
        "traced",
        "started",
        "round",
        "checkpoint",
        "finished",
    ]


@pytest.mark.parametrize(
    "card",
    ["[]", "{}", "null", '{"version": 9}']
    + ['{"version":1,"rounds_done":1,"prior":[3],"central":{"sampling_enforced_by":"x"}}']
    + ['{"version":1,"rounds_done":0,"prior":[],"central":{"sampling_enforced_by":3},'
       '"noise_is_reproducible":true}'],
)  # fmt: skip
def test_a_damaged_card_is_one_line(plan_file, tmp_path, refused, card):
    (tmp_path / "plan.toml").write_text(plan_file.read_text())
    (tmp_path / "privacy.json").write_text(card)
    assert "privacy.json" in refused("privacy", tmp_path)
