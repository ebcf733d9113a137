"""Memory, speed and the cost of checkpoints over a long run: are they flat?

One run of `tf_dpfl.simulate` on the digits, in this process, on the local worker
or on some of its own (`--workers`), which stand for other machines. TFF computes
the server's part on the first worker. Memory is the resident set.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import psutil
from tables import arguments, show, write_json

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 50  # rows of the curve


class Watch:
    """Samples the memory of this process and of its workers at a run's events."""

    def __init__(self, rounds):
        self.every = max(1, rounds // SAMPLES)
        self.rows = []
        self._me = psutil.Process()
        self._began = self._since = None
        self._checkpoints = 0.0

    def see(self, event):
        """What `simulate` calls."""
        if event["event"] == "started":
            self._began = self._since = time.monotonic()
        if event["event"] == "checkpoint":
            self._checkpoints += event["seconds"]
        if event["event"] == "round" and event["round"] % self.every == 0:
            self._sample(event["round"])

    def _sample(self, number):
        now = time.monotonic()
        children = self._me.children(recursive=True)
        workers = [child for child in children if "worker_binary" in child.name()]
        self.rows.append(
            {
                "round": number,
                "client MB": self._me.memory_info().rss / 1e6,
                "workers MB": sum(worker.memory_info().rss for worker in workers) / 1e6,
                "open files": self._me.num_fds(),
                "threads": self._me.num_threads(),
                "ms a round": 1000 * (now - self._since) / self.every,
                "checkpoints, % of the time": 100 * self._checkpoints / (now - self._began),
            }
        )
        self._since = now

    def growth(self, key):
        """Percent from the second tenth of the run to the last one."""
        values = [row[key] for row in self.rows]
        tenth = max(1, len(values) // 10)
        first, last = values[tenth : 2 * tenth], values[-tenth:]
        return 100 * (statistics.mean(last) / statistics.mean(first) - 1)


def main() -> int:
    """Runs, prints the curve, and what grew; 1 when memory grew by more than 5 %."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="default 500")
    parser.add_argument(
        "--workers", type=int, default=0, help="worker processes; default: the local one"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()
    import tf_dpfl
    from tf_dpfl.simulation.worker_process import start_worker

    overrides = [f"server.rounds={args.rounds}", *args.set]
    plan = tf_dpfl.load_plan(ROOT / "examples" / "digits.toml", overrides=overrides)
    watch = Watch(args.rounds)
    workers = [start_worker(concurrent_calls=1) for _ in range(args.workers)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            tf_dpfl.simulate(
                plan,
                Path(folder) / "run",
                workers=[f"localhost:{worker.port}" for worker in workers],
                on_event=watch.see,
            )
    finally:
        for worker in workers:
            worker.stop()
    workload = f"digits, {args.rounds} rounds, {args.workers or 'the local'} worker(s)"
    rows = [{"system": "tf_dpfl", "workload": workload, **row} for row in watch.rows]
    show(rows)
    write_json(rows, args.json)
    grown = {key: watch.growth(key) for key in ("client MB", "workers MB")}
    for key, percent in grown.items():
        print(f"{key}: {percent:+.1f} % from the second tenth to the last")
    return 1 if max(grown.values()) > 5 else 0


if __name__ == "__main__":
    sys.exit(main())
