"""Accuracy with a guarantee for every user: what is run, with which settings.

Chosen with `--held-out`, which leaves the last 10,000 training images to judge by and
2,500 users to train on; that choice is in no epsilon.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TABLES = ("user", "mechanisms", "clipping")
PARTS = Path(__file__).resolve().parent
STOCK = "stock TFF gaussian_fixed"

# Everybody in every round: then the noise in the sum of all rounds depends on what they
# move the model by, not on how many they are.
_EVERYBODY = {"clients.clients_per_round": 3000, "server.rounds": 100, "privacy.clip_norm": 0.03}
_NO_PRIVACY = {"privacy.noise_multiplier": 0.0, "privacy.clip_norm": 1e5, "server.rounds": 200}
BEST: dict[str, dict[str, Any]] = {
    "8": {**_EVERYBODY, "privacy.target_epsilon": 8.0, "server.learning_rate": 100.0},
    "4": {**_EVERYBODY, "privacy.target_epsilon": 4.0, "server.learning_rate": 60.0},
    "2": {**_EVERYBODY, "privacy.target_epsilon": 2.0, "server.learning_rate": 30.0},
    "none": {**_EVERYBODY, **_NO_PRIVACY, "server.learning_rate": 20.0},
}
TARGETS = {"8": 0.865, "4": 0.85, "2": 0.83, "none": 0.885}

# The server's learning rate of every mechanism, by epsilon.
RATES = {8.0: 10.0, 4.0: 7.0, 2.0: 6.0, 1.0: 5.0}
_BANDED = {"privacy.mechanism": "banded", "clients.sampling": "min_separation"}
MECHANISMS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "banded": _BANDED,
    "auto": {"privacy.mechanism": "auto"},
    STOCK: {},
}

# A server that divides by the updates' own size forgets the first rounds of a clip norm
# that is far off.
_ADAM = {
    "clients.clients_per_round": 300,
    "server.optimizer": "adam",
    "server.beta_2": 0.9,
    "server.learning_rate": 0.1,
    "server.rounds": 150,
}
CLIP_NORMS = (0.01, 0.03, 0.1, 0.3, 1.0)
_ADAPTIVE = {
    "privacy.adaptive_clipping": True,
    "privacy.clip_learning_rate": 1.0,
    "privacy.target_quantile": 0.2,
}


def with_mechanism(name: str, epsilon: float) -> dict[str, Any]:
    """The plan's changes for a mechanism: all else is the same for one epsilon."""
    private = {"privacy.target_epsilon": epsilon, "server.learning_rate": RATES[epsilon]}
    return {**MECHANISMS[name], **private}


def fixed_clip(clip_norm: float) -> dict[str, Any]:
    """The plan's changes for a clip norm that stays."""
    return {**_ADAM, "privacy.clip_norm": clip_norm}


def adaptive_clip(first: float) -> dict[str, Any]:
    """The plan's changes for a clip norm that adapts from `first` on."""
    return {**_ADAM, **_ADAPTIVE, "privacy.clip_norm": first}


def rows(
    what: str, seeds: Sequence[int], *, epsilons: Sequence[float] | None, held_out: bool
) -> Iterator[dict[str, Any]]:
    """The rows of "user", "mechanisms" or "clipping", one by one as they are measured.

    `epsilons`: of "mechanisms"; None is all of them.
    """

    def measured(name: str, changes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        stock = name == STOCK
        runs = [_run(changes, seed=seed, held_out=held_out, stock=stock) for seed in seeds]
        return {**_row(name, runs), **more}

    if what == "user":
        for name, changes in BEST.items():
            row = measured(f"epsilon {name}", changes, target=TARGETS[name])
            yield row | {"met": _word(row["mean"] >= row["target"])}
    elif what == "mechanisms":
        for epsilon in epsilons or RATES:
            found = {}
            for name in MECHANISMS:
                found[name] = measured(name, with_mechanism(name, epsilon), target="-", met="-")
                if name == "auto":
                    better = max(found[other]["mean"] for other in ("gaussian", "banded"))
                    found[name] |= _beside(found[name], better - 0.005)
                yield found[name]
    else:
        fixed = [
            measured(f"fixed {norm:g}", fixed_clip(norm), target="-", met="-")
            for norm in CLIP_NORMS
        ]
        yield from fixed
        best = max(fixed, key=lambda row: row["mean"])
        norm = CLIP_NORMS[fixed.index(best)]
        for first in (norm / 100, norm * 100):
            row = measured(f"adaptive from {first:g}", adaptive_clip(first))
            yield row | _beside(row, best["mean"] - 0.01)


def _beside(row: Mapping[str, Any], target: float) -> dict[str, Any]:
    return {"target": target, "met": _word(row["mean"] >= target)}


def _word(met: bool) -> str:
    return "yes" if met else "NO"


def _run(
    changes: Mapping[str, Any], *, seed: int, held_out: bool, stock: bool = False
) -> dict[str, Any]:
    """One training in a process of its own: accuracy, seconds, and what the card states."""
    wanted = {"changes": dict(changes), "seed": seed, "held_out": held_out, "stock": stock}
    with tempfile.TemporaryFile("w+") as output:
        subprocess.run(
            [sys.executable, PARTS / "run_user_level.py", json.dumps(wanted)],
            stdout=output,
            check=True,
        )
        output.seek(0)
        found: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    print(f"bench: seed {seed}, {dict(changes)}: {found['accuracy']:.4f}", file=sys.stderr)
    return found


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table's row of some seeds' runs; all have one plan."""
    accuracies = [found["accuracy"] for found in runs]
    first = runs[0]
    return {
        "system": name,
        "mean": statistics.mean(accuracies),
        "least": min(accuracies),
        "most": max(accuracies),
        "epsilon": "none" if first["epsilon"] is None else first["epsilon"],
        "noise": first["noise_multiplier"],
        "mechanism": first["mechanism"],
        "sampling": first["sampling"],
        "users_a_round": first["users_a_round"],
        "rounds": first["rounds"],
        "clip": first["clip_norm"],
        "seconds": statistics.median(found["seconds"] for found in runs),
        "privacy": first["privacy"],
        "card": first["card"],
    }
