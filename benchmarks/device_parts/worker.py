"""One system in a process of its own: `python worker.py SYSTEM FOLDER CORE STARTED`.

Pins itself to CORE, gets ready, and prints one JSON line: seconds from STARTED
(of the parent's monotonic clock) to the end of the first step, or why the
system cannot run this model. Then each line of standard input, a number of
seconds, is answered by the milliseconds of the steps made in that time, and the
peak of this process' memory.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

LEAST_STEPS = 3
MODULES = {
    "tflite_sgd": "run_tflite",
    "tflite_dp": "run_tflite",
    "noise": "run_tflite",
    "tf_sgd": "run_tensorflow",
    "tf_privacy_optimizer": "run_tf_privacy",
    "tf_privacy_dpmodel": "run_tf_privacy",
    "opacus": "run_opacus",
    "opacus_ghost": "run_opacus",
}
"""System: the module whose function of that name gives its step."""


def peak_mb() -> float:
    """The most memory this process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def main() -> None:
    """Runs one system until standard input ends."""
    system, folder, core, started = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    # Libraries print while they load: answers go to the real standard output.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        make = getattr(importlib.import_module(MODULES[system]), system)
        step: Callable[[], object] = make(Path(folder))
        prepare: Callable[[], object] = getattr(step, "prepare", lambda: None)
        prepare()
        step()
    except Exception as error:
        answers.write(json.dumps({"fails": f"{type(error).__name__}: {error}"[:300]}) + "\n")
        return
    answers.write(json.dumps({"start_s": time.monotonic() - float(started)}) + "\n")
    for line in sys.stdin:
        milliseconds: list[float] = []
        until = time.perf_counter() + float(line)
        while len(milliseconds) < LEAST_STEPS or time.perf_counter() < until:
            prepare()  # what is not part of a step
            began = time.perf_counter()
            step()
            milliseconds.append(1000 * (time.perf_counter() - began))
        answers.write(json.dumps({"milliseconds": milliseconds, "peak_mb": peak_mb()}) + "\n")


if __name__ == "__main__":
    main()
