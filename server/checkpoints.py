"""Checkpoints: the released models and figures, as files for people and tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_dpfl.protocol.files import sha256_hex, write_atomically

LATEST_VERSION = 1


def checkpoint_name(released_rounds: int) -> str:
    """Path of the model after that many released rounds, relative to the state."""
    return f"checkpoints/round_{released_rounds:06d}.bin"


def write_checkpoint(state: Path, *, released_rounds: int, weights: bytes) -> None:
    """Writes the model: flat float32, little-endian. Repeating it changes nothing."""
    path = state / checkpoint_name(released_rounds)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, weights)


def write_latest(state: Path, *, released_rounds: int, weights: bytes) -> None:
    """Points latest.json at a checkpoint that is on disk already."""
    tree = {
        "version": LATEST_VERSION,
        "released_rounds": released_rounds,
        "weights": checkpoint_name(released_rounds),
        "sha256": sha256_hex(weights),
    }
    write_json(state / "latest.json", tree)


def is_published(state: Path) -> bool:
    """Whether all files a reader of the newest model needs are there."""
    names = ("latest.json", "metrics.jsonl", "privacy.json", "checkpoints")
    return all((state / name).exists() for name in names)


def write_metrics(state: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes metrics.jsonl whole: one line for each released round, never two."""
    lines = [json.dumps(result, allow_nan=False) + "\n" for result in results]
    write_atomically(state / "metrics.jsonl", "".join(lines).encode())


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes one JSON object, whole or not at all."""
    write_atomically(path, json.dumps(tree, indent=2, allow_nan=False).encode() + b"\n")
