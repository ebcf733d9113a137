"""Time, CPU and memory of a round of federated training, beside stock TFF and its peers.

Every system is a process of its own on the same pinned core, with the same users,
model and plan: 50 users of 60 examples a round, batches of 20, one epoch, clip
norm 1, Gaussian noise. In a turn each system computes some rounds, one system after
the other, so that all see the same machine; figures are medians. CPU seconds count
the process and all it started. `--full` adds peers in environments of their own,
Fashion-MNIST, example-level DP-SGD, two cores, and a store of a million users.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from device_parts.environments import environment
from simulation_parts.million import measure_store
from simulation_parts.system import System
from simulation_parts.targets import targets
from simulation_parts.workload import write_data, write_workload
from tables import arguments, show, write_json

PARTS = Path(__file__).resolve().parent / "simulation_parts"
PEERS = ("pfl", "flower", "opacus")
QUICK = {
    ("mlp", "user", 50): ("tf_dpfl", "tf_loop", "stock_functional"),
    ("cnn", "user", 50): ("tf_dpfl", "tf_loop", "stock_functional"),
    ("cnn", "example", 50): ("tf_dpfl",),
}
FULL = {
    ("mlp", "user", 50): (
        *("tf_dpfl", "tf_loop", "stock_functional", "stock_keras", "pfl", "flower"),
    ),
    ("cnn", "user", 50): (
        *("tf_dpfl", "tf_loop", "stock_functional", "stock_keras", "pfl", "flower"),
    ),
    ("cnn", "example", 50): ("tf_dpfl", "opacus"),
    ("cnn", "user", 200): ("tf_dpfl", "tf_dpfl:2"),
}


def start(folder: Path, workload: tuple[str, str, int], name: str, args: Any) -> System:
    """The process of one system; "NAME:2" has two cores."""
    name, _, two = name.partition(":")
    model, unit, users = workload
    place = folder / f"{model}-{unit}-{users}"
    if not place.exists():
        write_workload(folder, model=model, unit=unit, users=users)
    python = environment("peers", PARTS) if name in PEERS else Path(sys.executable)
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:2])
    cores = cores if two else str(args.core)
    return System(name, place, users=users, python=python, cores=cores)


def main() -> int:
    """Prints the measurements, then the targets."""
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="peers, real data, everything")
    parser.add_argument("--turns", type=int, default=0, help="of each system (5; --full 9)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a system in a turn")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", help="leave the others out")
    args = parser.parse_args()
    plan = FULL if args.full else QUICK
    done: list[System] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, real=args.full)
        # Example-level DP-SGD is held against plain SGD: the CNN's systems take turns.
        for model in ("mlp", "cnn"):
            systems: list[System] = []
            try:
                for workload, names in plan.items():
                    for name in names if workload[0] == model else ():
                        if not args.only or name.partition(":")[0] in args.only:
                            systems.append(start(folder, workload, name, args))
                for _ in range(args.turns or (9 if args.full else 5)):
                    for system in systems:
                        if not system.fails:
                            system.run(args.seconds)
            finally:
                for system in systems:
                    system.end()
            done += systems
            print(f"bench: {model} measured", file=sys.stderr, flush=True)
        rows = [system.row() for system in done]
        met = targets(done)
        for table in (rows, met):
            show(table)
            print()
        write_json([*rows, *met], args.json)
        if args.full:
            store = [measure_store(folder, core=args.core)]
            show(store)
            write_json([*rows, *met, *store], args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
