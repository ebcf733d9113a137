"""Simulations ended with kill -9 in a round of choice."""

import signal
import subprocess
import sys

from tf_dpfl.protocol.plan_files import plan_to_toml

_PROGRAM = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.simulation.simulate import simulate
def stop(event):
    if event["event"] == "round" and event["round"] == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
simulate(load_plan(sys.argv[1]), sys.argv[2], seed=7, on_event=stop)
"""


def simulate_until_killed(plan, folder, *, in_round):
    """`simulate(plan, folder, seed=7)` as a program that dies when `in_round` is told.

    It loads the plan's own data. Beside `folder` stay the plan and what was printed.
    """
    plan_file, log_file = folder.with_suffix(".toml"), folder.with_suffix(".log")
    plan_file.write_text(plan_to_toml(plan))
    with open(log_file, "wb") as log:
        status = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(plan_file), str(folder), str(in_round)],
            stdout=log,
            stderr=log,
            timeout=240,
        ).returncode
    assert status == -signal.SIGKILL, log_file.read_text()
