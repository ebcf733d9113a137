"""TFF's worker never outlives the program, however the program ends.

Each test starts a real program whose output is a pipe. The pipe reaches its end
only when every process that inherited it is gone, so reading it to the end is
itself the proof that no worker holds it.
"""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from plans import digits_plan, with_server

from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.simulation.worker_process import start_worker

PROGRAM = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow_federated as tff
from tf_dpfl.simulation.runtime import tff_runtime

@tff.tensorflow.computation
def three():
    return 3

with tff_runtime():
    print("result", three(), flush=True)
    {then}
"""


def run(then):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(then=then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker_of(process):
    """The worker's psutil handle, once the first result is printed."""
    for line in process.stdout:
        if line.startswith("result 3"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "worker_binary" in child.name()]
    assert len(workers) == 1
    return workers[0]


def assert_ended(worker):
    deadline = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived the program"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("then", "status"),
    [
        ("time.sleep(1)", 0),
        ("time.sleep(1); raise ValueError('planned')", 1),
        ("time.sleep(1); sys.exit(3)", 3),
        ("time.sleep(1); os._exit(4)", 4),
    ],
    ids=["ends", "raises", "exits", "exits_at_once"],
)
def test_no_worker_is_left_when_the_program(then, status):
    with run(then) as process:
        worker = worker_of(process)
        process.stdout.read()  # to the end of the pipe
        assert process.wait(30) == status
    assert_ended(worker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_is_left_after_a_signal(number):
    with run("time.sleep(300)") as process:
        worker = worker_of(process)
        os.kill(process.pid, number)
        process.stdout.read()
        assert process.wait(30) != 0
    assert_ended(worker)


def dpfl_simulate(plan, folder):
    """The real command with its output on a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "tf_dpfl.cli.main", "simulate", str(plan)]
        + ["--out", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker_after_first_round(process):
    for line in process.stdout:
        if '"round"' in line and '"reports"' in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "worker_binary" in child.name()]
    assert len(workers) == 1
    return workers[0]


def test_command_that_is_interrupted_leaves_no_worker_and_a_run_that_goes_on(tmp_path):
    plan, folder = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(plan_to_toml(with_server(digits_plan(noise_multiplier=1.0), rounds=150)))
    with dpfl_simulate(plan, folder) as process:
        worker = worker_after_first_round(process)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
    assert_ended(worker)
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < done < 150
    with dpfl_simulate(plan, folder) as process:
        worker = worker_after_first_round(process)
        process.stdout.read()  # to the end of the pipe
        assert process.wait(60) == 0
    assert_ended(worker)
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == 150


def processes_of(process):
    return [process, *process.children(recursive=True)]


@pytest.mark.parametrize("own", ["", "3"])
def test_a_worker_computes_each_client_in_one_thread_unless_told_otherwise(monkeypatch, own):
    monkeypatch.delenv("TF_NUM_INTEROP_THREADS", raising=False)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    if own:
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", own)
    worker = start_worker(concurrent_calls=2)
    try:
        started = psutil.Process(worker.process.pid)
        environment = {}
        while not environment:  # empty while the program is being loaded
            time.sleep(0.02)
            found = [p for p in processes_of(started) if "worker_binary" in p.name()]
            environment = found[0].environ() if found else {}
    finally:
        worker.stop()
    assert environment["TF_NUM_INTEROP_THREADS"] == "2"
    assert environment["TF_NUM_INTRAOP_THREADS"] == (own or "1")
