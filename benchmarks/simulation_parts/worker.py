"""One system in a process of its own: `python worker.py SYSTEM FOLDER CORES STARTED`.

Pins itself to CORES ("0" or "0,1"), computes a first round and prints one JSON
line: seconds from STARTED (of the parent's monotonic clock) to its end, or why the
system fails. Then each line of standard input, a number of seconds, is answered
by the wall time of the rounds made in that time, the CPU time of one round (this
process and all it started) and the memory held at most.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from usage import cpu_seconds, peak_mb

MODULES = {
    "tf_dpfl": "run_tf_dpfl",
    "tf_loop": "run_tf_loop",
    "stock_functional": "run_stock",
    "stock_keras": "run_stock",
    "pfl": "run_pfl",
    "flower": "run_flower",
    "opacus": "run_opacus",
}
"""System: the module whose function of that name takes a workload and `rounds`."""

LEAST_ROUNDS = 2


def turns(answers, started: float) -> Iterator[None]:
    """Yields before every round to compute; ends when there are to be no more."""
    yield  # the first: traces, compiles, loads
    answers.write(json.dumps({"start_s": time.monotonic() - started}) + "\n")
    for line in sys.stdin:
        seconds: list[float] = []
        used, until = cpu_seconds(), time.perf_counter() + float(line)
        while len(seconds) < LEAST_ROUNDS or time.perf_counter() < until:
            began = time.perf_counter()
            yield
            seconds.append(time.perf_counter() - began)
        cpu = (cpu_seconds() - used) / len(seconds)
        answer = {"seconds": seconds, "cpu": cpu, "peak_mb": peak_mb()}
        answers.write(json.dumps(answer) + "\n")


def main() -> None:
    """Runs one system until standard input ends."""
    system, folder, cores, started = sys.argv[1:]
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # Libraries print while they load: answers go to the real standard output.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from workload import Workload

    try:
        run: Callable[..., None] = getattr(importlib.import_module(MODULES[system]), system)
        run(Workload(Path(folder)), turns(answers, float(started)))
    except Exception as error:
        traceback.print_exc()
        answers.write(json.dumps({"fails": f"{type(error).__name__}: {error}"[:300]}) + "\n")


if __name__ == "__main__":
    main()
