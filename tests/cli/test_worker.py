"""`dpfl worker` and `dpfl simulate --workers`, as programs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tf_dpfl.cli import arguments
from tf_dpfl.simulation.worker_process import can_be_kept_apart

DPFL = [sys.executable, "-m", "tf_dpfl.cli.main"]
APART = can_be_kept_apart()


@contextlib.contextmanager
def dpfl_worker(log, *options, port=0):
    """A running `dpfl worker` and the port it says it has."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*DPFL, "worker", "--port", str(port), "--cores", "1", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    try:
        started = json.loads(process.stdout.readline())
        assert (started["event"], started["cores"]) == ("worker started", 1)
        yield process, started["port"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def worker_binary(process):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            if "worker_binary" in child.name():
                return child
    raise AssertionError("no worker was started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_worker_leaves_nothing_running(number, tmp_path):
    with dpfl_worker(tmp_path / "log") as (process, _):
        binary = worker_binary(process)
        os.kill(process.pid, number)
        assert process.wait(30) == (130 if number == signal.SIGINT else -number)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([binary], timeout=20)
        assert not binary.is_running() or binary.status() == psutil.STATUS_ZOMBIE


def test_a_worker_whose_program_ends_says_so(tmp_path):
    with dpfl_worker(tmp_path / "log") as (process, _):
        worker_binary(process).kill()
        assert process.wait(30) == 2
    assert "status -9" in (tmp_path / "log").read_text()


def answers(host, port):
    """Whether somebody accepts connections there, now or within some seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
            return True
        time.sleep(0.1)
    return False


def test_a_worker_is_reached_on_its_address_alone_or_warns(tmp_path):
    """127.0.0.2 is this machine too, and stands for every other interface."""
    with dpfl_worker(tmp_path / "log") as (process, port):
        assert answers("127.0.0.1", port)
        worker_binary(process)
        time.sleep(1.0)  # until it listens, wherever it does
        with contextlib.closing(socket.socket()) as other:
            assert (other.connect_ex(("127.0.0.2", port)) == 0) is not APART
    warning = (tmp_path / "log").read_text()
    assert ("every interface" in warning) is not APART
    with dpfl_worker(tmp_path / "log", "--host", "0.0.0.0") as (process, port):
        assert answers("127.0.0.2", port)
    assert "close it from outside" in (tmp_path / "log").read_text()


def test_a_port_that_is_taken_is_refused(refused):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert str(port) in refused("worker", "--port", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "a" * 70, "ä..b"])
@pytest.mark.skipif(not APART, reason="every interface is taken, whatever --host says")
def test_an_address_of_another_machine_is_refused(host, refused):
    refused("worker", "--port", 0, "--host", host)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":7000", "host:0", "host:70000", "a:1,", "a:1,a:1", "a:x"]
)
def test_wrong_workers_are_refused_in_one_line(text, plan_file, tmp_path, refused):
    refused("simulate", plan_file, "--out", tmp_path / "r", "--workers", text)


def test_workers_are_read_in_their_order():
    assert arguments.addresses("b:7000, a:7001") == ("b:7000", "a:7001")
    assert arguments.addresses("[::1]:7000") == ("[::1]:7000",)


@pytest.mark.slow
def test_a_run_survives_the_end_of_all_workers_and_of_itself(plan_file, tmp_path):
    """The command as a user has it: workers end one by one, and the run goes on later."""
    folder, logs = tmp_path / "run", [tmp_path / "a.log", tmp_path / "b.log"]
    with (
        dpfl_worker(logs[0]) as (first, first_port),
        dpfl_worker(logs[1]) as (second, second_port),
        open(tmp_path / "err", "w+") as errors,
    ):
        names = [f"localhost:{port}" for port in (first_port, second_port)]
        command = [*DPFL, "simulate", str(plan_file), "--out", str(folder), "--json"]
        command += ["--set", "server.rounds=60", "--workers", ",".join(names)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},  # the command's own words alone
        )
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
        said = errors.read()
    assert said.count("\n") == 1, said
    assert "no worker is left" in said and all(name in said for name in names)
    assert any(e == {"event": "worker lost", "worker": names[0]} for e in events)
    with dpfl_worker(logs[1], port=second_port):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    charged = (folder / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in charged] == list(range(1, 61))
