"""One user-level training on scattering features: `run_user_level.py JSON`, prints JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PARTS = Path(__file__).resolve().parent
sys.path.insert(0, str(PARTS.parent))

# Of every example's features, so that a learning rate has a usual size.
LENGTH = 3.0


def users(plan: Any, *, held_out: bool) -> Any:
    """The plan's users, whose examples are features in place of images."""
    from example_level import load
    from features import NORM

    from tf_dpfl.data.columns import FederatedData
    from tf_dpfl.data.partitions import partition_of_plan, partition_sha256

    split = load(held_out=held_out)
    (x, y), (test_x, test_y) = split.train, split.test
    parts = partition_of_plan(y, plan)
    order = np.concatenate(parts)
    counts = [len(part) for part in parts]
    scale = np.float32(LENGTH / NORM)
    return FederatedData(
        inputs={"x": x[order].astype(np.float32) * scale},
        target=y[order].astype(np.int32),
        offsets=np.cumsum([0, *counts]),
        feature_scale=1.0,
        classes=10,
        test={"x": test_x.astype(np.float32) * scale, "y": test_y.astype(np.int32)},
        client_names=[str(number) for number in range(len(parts))],
        description={
            "source": "scattering features of fashion_mnist, preconditioned by generated images",
            "partition_sha256": partition_sha256(parts),
            "population": len(parts),
            "held_out": held_out,
        },
    )


def plan_with(changes: dict[str, Any], *, held_out: bool) -> Any:
    """The benchmark's plan with `changes`; with `held_out` the same share of fewer users."""
    import tf_dpfl

    changes = dict(changes)
    if "privacy.noise_multiplier" not in changes:
        changes.setdefault("privacy.target_epsilon", 8.0)
    if held_out:
        cohort = changes.get("clients.clients_per_round", 100)
        changes |= {"clients.population": 2500, "clients.clients_per_round": cohort * 5 // 6}
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    plan = tf_dpfl.load_plan(PARTS / "user_level.toml", overrides=overrides)
    return tf_dpfl.calibrate_plan(plan)


def main() -> None:
    """Trains and prints one line of JSON."""
    from parity import run_stock, stock_epsilon
    from statements import of_stock

    import tf_dpfl
    from tf_dpfl.privacy.card_line import in_one_line

    wanted = json.loads(sys.argv[1])
    plan = plan_with(wanted["changes"], held_out=wanted["held_out"])
    data = users(plan, held_out=wanted["held_out"])
    began = time.monotonic()
    card: dict[str, Any] | None = None
    if wanted["stock"]:
        accuracy, _ = run_stock(plan, wanted["seed"], data)
        epsilon = stock_epsilon(plan)
        privacy = of_stock(plan, epsilon)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = tf_dpfl.simulate(plan, Path(folder) / "run", data=data, seed=wanted["seed"])
        accuracy, card = result.accuracy, result.card.to_json()
        epsilon, privacy = card["central"]["epsilon"], in_one_line(card)
    found = {
        "accuracy": accuracy,
        "seconds": time.monotonic() - began,
        "epsilon": epsilon,
        "clip_norm": plan.privacy.clip_norm,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "mechanism": plan.privacy.mechanism,
        "sampling": plan.clients.sampling,
        "users_a_round": plan.clients.clients_per_round,
        "rounds": plan.server.rounds,
        "privacy": privacy,
        "card": card,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
