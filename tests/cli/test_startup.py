"""Quick answers stay quick: what they import is counted, for clocks differ by machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Each takes tenths of a second or more to import.
SLOW = {
    "tensorflow", "tensorflow_federated", "keras", "jax", "tensorflow_privacy", "sklearn",
    "matplotlib", "rich", "grpc", "tensorflow_probability", "vizier", "tensorboard",
}  # fmt: skip
ACCOUNTING = {"dp_accounting", "scipy"}
ARRAYS = {"numpy", "cryptography"}

PROGRAM = """
import json, sys
from tf_dpfl.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(json.dumps([status, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def loaded_by(*arguments):
    """The exit status of `dpfl`, and the packages in memory after it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    status, names = json.loads(done.stdout.splitlines()[-1])
    return status, set(names)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["simulate", "--help"], ["tune", "--help"], ["--version"], ["nope"]]
)
def test_help_and_wrong_arguments_load_nothing_but_the_parser(arguments):
    status, loaded = loaded_by(*arguments)
    assert status == (2 if arguments == ["nope"] else 0)
    assert not loaded & (SLOW | ACCOUNTING | ARRAYS)


@pytest.mark.parametrize("command", ["simulate", "privacy"])
def test_a_faulty_plan_is_refused_before_anything_is_loaded(command, plan_file, tmp_path):
    out = ["--out", str(tmp_path / "run")] if command == "simulate" else []
    status, loaded = loaded_by(command, str(plan_file), *out, "--set", "server.rounds=0")
    assert status == 2
    assert not loaded & (SLOW | ACCOUNTING | ARRAYS)


def test_a_faulty_search_is_refused_before_anything_is_loaded(plan_file, tmp_path):
    out = ["--out", str(tmp_path / "search"), "--data", "private", "--folds", "3"]
    status, loaded = loaded_by("tune", str(plan_file), *out, "--over", "clients_per_round=1,9")
    assert status == 2
    assert not loaded & (SLOW | ACCOUNTING | ARRAYS)


def test_a_privacy_card_loads_the_accountant_and_no_more(plan_file):
    status, loaded = loaded_by("privacy", str(plan_file))
    assert status == 0 and loaded >= {"dp_accounting"}
    assert not loaded & SLOW


def test_a_worker_starts_without_tensorflow_in_python():
    _, loaded = loaded_by("worker", "--port", "70000")
    code = "import json, sys, tf_dpfl.cli.worker, tf_dpfl.simulation.worker_process\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded |= {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & (SLOW | ACCOUNTING)
