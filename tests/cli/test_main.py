"""The command `dpfl` from outside: statuses, one line per fault, no traceback on bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tf_dpfl.cli import arguments, list_models
from tf_dpfl.cli.main import main
from tf_dpfl.protocol.errors import ModelError, PlanError, StateError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (PlanError(["a is wrong", "b is wrong"]), ["dpfl: a is wrong", "dpfl: b is wrong"]),
        (ModelError(["layer one", "layer two"]), ["dpfl: layer one", "dpfl: layer two"]),
        (StateError("no such run"), ["dpfl: no such run"]),
    ],
)
def test_every_fault_is_one_line_and_status_2(monkeypatch, capsys, error, lines):
    def fail(args):
        raise error

    monkeypatch.setattr(list_models, "run", fail)
    assert main(["models"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(list_models, "run", interrupt)
    assert main(["models"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_bug_keeps_its_traceback(monkeypatch):
    def bug(args):
        raise ZeroDivisionError

    monkeypatch.setattr(list_models, "run", bug)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["export"],
        ["simulate"],
        ["simulate", "p.toml"],
        ["privacy"],
        ["simulate", "p.toml", "--out", "r", "--seed", "-1"],
        ["simulate", "p.toml", "--out", "r", "--seed", "1.5"],
        ["privacy", "p.toml", "--epsilon", "0"],
        ["privacy", "p.toml", "--epsilon", "nan"],
        ["privacy", "p.toml", "--epsilon", "inf"],
        ["export", "client", "p.toml", "--out", "t", "--valid-for-days", "0"],
        ["export", "client", "p.toml", "--out", "t", "--valid-for-days", "nan"],
        ["export", "model", "run", "--out", "m"],
        ["export", "model", "run", "--out", "m", "--format", "onnx"],
        ["data", "write", "p.toml", "--out", "d", "--clients", "9"],
        ["data", "write", "p.toml", "--out", "d", "--clients", "5:5"],
        ["data", "write", "p.toml", "--out", "d", "--clients", "-1:5"],
    ],
)
def test_bad_arguments_are_one_line_and_status_2(argv, refused):
    assert refused(*argv).endswith("--help\n")


@pytest.mark.parametrize(
    "argv",
    [
        ["simulate", "{}", "--out", "out"],
        ["privacy", "{}"],
        ["export", "client", "{}", "--out", "out"],
        ["data", "write", "{}", "--out", "out"],
    ],
)
@pytest.mark.parametrize("kind", ["missing", "garbage", "faulty", "empty folder"])
def test_bad_plan_is_named_with_every_fault(plan_file, argv, kind, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    plan = tmp_path / "plan"
    faults = 1
    if kind == "garbage":
        plan.write_bytes(b"\xff\x00=")
    elif kind == "faulty":
        text = plan_file.read_text().replace('model = "linear"', "model = 3")
        plan.write_text(text.replace("rounds = 10", "rounds = 0\nnonsense = 1"))
        faults = 3
    elif kind == "empty folder":
        plan.mkdir()
    said = refused(*(text.format(plan) for text in argv), faults=faults)
    assert all(line.startswith(f"dpfl: {plan}") for line in said.splitlines())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["nonsense", "privacy.clip_norm", "server.rounds=0", "a.b=1"])
def test_bad_override_is_one_line_and_status_2(plan_file, override, refused):
    refused("privacy", plan_file, "--set", override)


@pytest.mark.parametrize("epsilon", ["1e400", "", "x", "-1", "1e-400"])
def test_epsilon_must_be_finite_and_positive(epsilon):
    with pytest.raises(Exception, match="must be a finite number > 0"):
        arguments.epsilon(epsilon)


def test_out_that_is_a_file_is_refused_before_any_work(plan_file, tmp_path, refused):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert "is a file" in refused("simulate", plan_file, "--out", taken)
    assert taken.read_text() == "mine"


def test_signing_key_is_found_in_order(tmp_path, monkeypatch):
    named = tmp_path / "named.key"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(arguments.SIGNING_KEY_VARIABLE, raising=False)
    home = tmp_path / ".config" / "tf_dpfl" / "signing.key"
    assert arguments.signing_key_file(None) == home
    monkeypatch.setenv(arguments.SIGNING_KEY_VARIABLE, str(tmp_path / "variable.key"))
    assert arguments.signing_key_file(None) == tmp_path / "variable.key"
    assert arguments.signing_key_file(named) == named
    monkeypatch.setenv(arguments.SIGNING_KEY_VARIABLE, "")
    assert arguments.signing_key_file(None) == home


def test_nobody_reading_is_no_traceback(plan_file):
    program = "import sys; from tf_dpfl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    reader, writer = subprocess.os.pipe()
    subprocess.os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program, "privacy", str(plan_file)],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    subprocess.os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""
