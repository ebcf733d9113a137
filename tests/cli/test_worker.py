"""`dpfl worker` and `dpfl simulate --workers`, as programs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tf_dpfl.cli import arguments
from tf_dpfl.cli.main import main
from tf_dpfl.simulation.worker_process import free_port

DPFL = [sys.executable, "-m", "tf_dpfl.cli.main"]


@contextlib.contextmanager
def dpfl_worker(port, log):
    """A running `dpfl worker`, once it listens."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*DPFL, "worker", "--port", str(port), "--cores", "1", "--json"],
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    try:
        started = json.loads(process.stdout.readline())
        assert started == {"event": "worker started", "port": port, "cores": 1}
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def worker_binaries(process):
    children = psutil.Process(process.pid).children()
    deadline = time.monotonic() + 20
    while not any("worker_binary" in child.name() for child in children):
        assert time.monotonic() < deadline
        children = psutil.Process(process.pid).children()
    return children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_worker_warns_of_its_open_port_and_leaves_nothing_running(number, tmp_path):
    with dpfl_worker(free_port(), tmp_path / "log") as process:
        (binary,) = worker_binaries(process)
        os.kill(process.pid, number)
        assert process.wait(30) == (130 if number == signal.SIGINT else -number)
    psutil.wait_procs([binary], timeout=20)
    assert not binary.is_running() or binary.status() == psutil.STATUS_ZOMBIE
    assert "every interface" in (tmp_path / "log").read_text()


def test_a_worker_whose_program_ends_says_so(tmp_path):
    with dpfl_worker(free_port(), tmp_path / "log") as process:
        (binary,) = worker_binaries(process)
        binary.kill()
        assert process.wait(30) == 2
    assert "status -9" in (tmp_path / "log").read_text()


def test_a_port_that_is_taken_is_refused(tmp_path, capsys):
    port = free_port()
    with dpfl_worker(port, tmp_path / "log") as process:
        (binary,) = worker_binaries(process)
        deadline = time.monotonic() + 30
        while not any(c.laddr.port == port for c in binary.net_connections()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert main(["worker", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(port) in line


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":7000", "host:0", "host:70000", "a:1,", "a:1,a:1", "a:x"]
)
def test_wrong_workers_are_refused_in_one_line(text, plan_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["simulate", str(plan_file), "--out", str(tmp_path / "r"), "--workers", text])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_workers_are_read_in_their_order():
    assert arguments.addresses("b:7000, a:7001") == ("b:7000", "a:7001")
    assert arguments.addresses("[::1]:7000") == ("[::1]:7000",)


@pytest.mark.slow
def test_a_run_survives_the_end_of_all_workers_and_of_itself(plan_file, tmp_path):
    """The command as a user has it: workers end one by one, and the run goes on later."""
    ports, folder = [free_port(), free_port()], tmp_path / "run"
    names = [f"localhost:{port}" for port in ports]
    command = [*DPFL, "simulate", str(plan_file), "--out", str(folder), "--json"]
    command += ["--set", "server.rounds=60", "--workers", ",".join(names)]
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    with (
        dpfl_worker(ports[0], logs[0]) as first,
        dpfl_worker(ports[1], logs[1]) as second,
        open(tmp_path / "err", "w+") as errors,
    ):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1].get("round") == 10:
                first.kill()
            if events[-1].get("round") == 30:
                second.kill()
        assert process.wait(120) == 2
        process.stdout.close()
        errors.seek(0)
        (line,) = errors.read().splitlines()
    assert "no worker is left" in line and all(name in line for name in names)
    assert any(e == {"event": "worker lost", "worker": names[0]} for e in events)
    with dpfl_worker(ports[1], logs[1]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    charged = (folder / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in charged] == list(range(1, 61))
