"""Simulations, searches and comparisons ended with kill -9 in a round of choice."""

import signal
import subprocess
import sys

from tf_dpfl.protocol.plan_files import plan_to_toml

# Runs `{call}`, in which `plan`, `out` and `on_event` are known.
_PROGRAM = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.simulation.comparing import compare
from tf_dpfl.simulation.simulate import simulate
from tf_dpfl.simulation.tuning import tune
plan, out = load_plan(sys.argv[1]), sys.argv[2]
def on_event(event):
    if {last}.items() <= event.items():
        os.kill(os.getpid(), 9)
{call}
"""


def simulate_until_killed(plan, folder, *, in_round):
    """`simulate(plan, folder, seed=7)` as a program that dies when `in_round` is told."""
    call = "simulate(plan, out, seed=7, on_event=on_event)"
    run_until_killed(call, plan, folder, last={"event": "round", "round": in_round})


def run_until_killed(call, plan, folder, *, last):
    """`call` as a program that dies when it is told an event with all that `last` has.

    `call` is Python: of `simulate`, `tune` or `compare`, with `plan`, `out` (that is `folder`)
    and `on_event`. It loads the plan's own data. Beside `folder` stay the plan and what was
    printed.
    """
    plan_file, log_file = folder.with_suffix(".toml"), folder.with_suffix(".log")
    plan_file.write_text(plan_to_toml(plan))
    program = _PROGRAM.format(call=call, last=last)
    with open(log_file, "wb") as log:
        status = subprocess.run(
            [sys.executable, "-c", program, str(plan_file), str(folder)],
            stdout=log,
            stderr=log,
            timeout=240,
        ).returncode
    assert status == -signal.SIGKILL, log_file.read_text()
