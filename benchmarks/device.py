"""Time, memory, start-up and size of training on a device, beside TensorFlow and its peers.

Every system is a process of its own, pinned to one core; in a round each makes
its steps in turn, so that all see the same machine. A system's time is the
median step of its best round (ms_min), and of its median round (ms_median); a
ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_parts.environments import RUNTIMES, TORCH, environment, variables
from device_parts.system import System
from device_parts.targets import targets
from tables import arguments, show, write_json

PARTS = Path(__file__).resolve().parent / "device_parts"
MODELS = ("mlp", "cnn", "text", "gru", "resnet", "transformer")
OWN = ("tflite_sgd", "tflite_dp", "noise")
TF_PRIVACY = ("tf_privacy_optimizer", "tf_privacy_dpmodel")
OPACUS = ("opacus", "opacus_ghost")


@contextmanager
def systems_of(folder: Path, args: Any) -> Iterator[list[System]]:
    """The processes of one workload."""
    plan = [
        (name, f"{runtime} {name}", environment(runtime))
        for runtime in args.runtime
        for name in OWN
    ]
    tensorflow = ("tf_sgd",) if args.quick else ("tf_sgd", *TF_PRIVACY)
    plan += [(name, name, Path(sys.executable)) for name in tensorflow]
    plan += [(name, name, environment(TORCH)) for name in (() if args.quick else OPACUS)]
    started: list[System] = []
    try:
        for name, label, python in plan:
            started.append(System(name, label, folder, python=python, core=args.core))
        yield started
    finally:
        for system in started:
            system.end()


def measure(folder: Path, args: Any) -> list[System]:
    """The systems of the workload of `folder`, measured."""
    with systems_of(folder, args) as systems:
        for _ in range(args.rounds):
            for system in systems:
                if not system.fails:
                    system.run(args.seconds)
    return systems


def main() -> int:
    """Prints the measurements, then the targets."""
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--runtime", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a system in a round")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="TFLite and TensorFlow alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workloads = [f"{model}:{batch}" for model in args.models for batch in args.batch]
        with tempfile.TemporaryFile("w+") as log:
            command = [sys.executable, PARTS / "files.py", temporary, *workloads]
            subprocess.run(command, check=True, stdout=log, env=variables())
        rows, files, met = [], [], []
        for workload in workloads:
            folder = Path(temporary) / workload.replace(":", "-")
            systems = measure(folder, args)
            rows += [system.row(folder.name) for system in systems]
            facts = json.loads((folder / "facts.json").read_text())
            files.append({"system": "client.tflite", "workload": folder.name, **facts})
            rounds = {system.label: system.rounds for system in systems}
            met += targets(folder.name, rounds, facts, runtimes=args.runtime)
            # After each: a run of hours that is ended keeps what it has.
            write_json([*rows, *files, *met], args.json)
            print(f"bench: {workload} measured", file=sys.stderr, flush=True)
    for table in (rows, files, met):
        show(table)
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
