"""A store of a million users with ragged examples: opening it, and rounds from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from device_parts.environments import variables

POPULATION = 1_000_000
FEATURES = 32
CLASSES = 10
MOST_EXAMPLES = 20
USERS = 100
ROUNDS = 20


def measure_store(folder: Path, *, core: int) -> dict[str, Any]:
    """One row: sizes, seconds to open, and memory before and after rounds."""
    _write(folder / "store")
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, __file__, str(folder / "store"), str(core)]
        environment = variables()
        environment["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).resolve().parent.parent}"
        subprocess.run(command, stdout=output, check=True, env=environment)
        output.seek(0)
        return json.loads(output.read().splitlines()[-1])


def _write(folder: Path) -> None:
    from tf_dpfl.data.store import StoreWriter

    random = np.random.default_rng(0)
    columns = {"x": (np.uint8, (FEATURES,)), "y": (np.int32, ())}
    with StoreWriter(folder, columns=columns, feature_scale=255.0, classes=CLASSES) as store:
        for _ in range(POPULATION // 10_000):
            counts = random.integers(0, MOST_EXAMPLES + 1, 10_000)
            rows = int(counts.sum())
            x = random.integers(0, 256, (rows, FEATURES), np.uint8)
            store.add({"x": x, "y": random.integers(0, CLASSES, rows).astype(np.int32)}, counts)


def _measure(folder: Path) -> dict[str, Any]:
    import time

    import tensorflow as tf
    from usage import cpu_seconds, resident_mb

    from tf_dpfl.data.store import open_store
    from tf_dpfl.protocol.plan import plan_from_dict
    from tf_dpfl.simulation.cohort import draw_cohort
    from tf_dpfl.simulation.process import build_learning_process
    from tf_dpfl.simulation.runtime import tff_runtime
    from tf_dpfl.simulation.shard import make_shards

    began = time.monotonic()
    data = open_store(folder)
    open_s = time.monotonic() - began
    clients = {
        "population": POPULATION,
        "clients_per_round": USERS,
        "examples_per_client": MOST_EXAMPLES,
        "sampling": "poisson",
    }
    plan = plan_from_dict(
        {
            "version": 1,
            "task": {"model": "mlp"},
            "data": {"source": "store", "path": str(folder), "partition": "natural"},
            "clients": clients,
            "local_training": {"epochs": 1, "batch_size": 5, "learning_rate": 0.1},
            "privacy": {
                "clip_norm": 1.0,
                "delta": 1e-9,
                "smallest_cohort": 1,
                "noise_multiplier": 1.0,
                "noise": "server",
            },
            "server": {"rounds": 1},
        }
    )
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.InputLayer([FEATURES]), layers.Dense(64, "relu"), layers.Dense(CLASSES)]
    )
    with tff_runtime():
        process = build_learning_process(plan, model, data)
        state, memory = process.initialize(), []
        for number in range(ROUNDS + 1):
            cohort = draw_cohort(plan.clients, run_seed=b"bench", round_number=number)
            state = process.next(state, make_shards(data, cohort, plan)).state
            memory.append(resident_mb())
            if number == 0:
                used, began = cpu_seconds(), time.monotonic()
        seconds = (time.monotonic() - began) / ROUNDS
        used = (cpu_seconds() - used) / ROUNDS
    return {
        "system": "tf_dpfl from a store",
        "workload": f"{POPULATION} users, {len(data.target)} examples, {USERS} a round",
        "open_s": open_s,
        "seconds_a_round": seconds,
        "cpu_seconds_a_round": used,
        "mb_after_first_round": memory[0],
        "mb_after_all": memory[-1],
    }


def main() -> None:
    """Measures the store named by the first argument on the core named by the second."""
    import os

    folder, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    print(json.dumps(_measure(Path(folder))))


if __name__ == "__main__":
    main()
