"""Signed tasks with real client files, for the tests of the device."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.manifest import (
    CLIENT_FILE,
    KERAS_FILE,
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    DpMethod,
    FileDigest,
    Manifest,
    manifest_to_bytes,
    sign_manifest,
)
from tf_dpfl.protocol.plan import Plan, plan_from_dict
from tf_dpfl.protocol.signing import public_key_hex
from tf_dpfl.protocol.tensors import TensorLayout, vector_to_bytes

# Client files: the first part is the registry's model; the others name the optimizer, what
# becomes of its state and the unit where they are not sgd, "reset" and "user".
SHAPES = {
    "mlp": (8, 8, 1),
    "mlp-momentum": (8, 8, 1),
    "mlp-momentum-keep": (8, 8, 1),
    "cnn": (28, 28, 1),
    "mlp-example": (8, 8, 1),
    "mlp-momentum-example": (8, 8, 1),
}
CLASSES = 10
EXAMPLES = 20
KERAS_CONTENT = b"not sent to devices"


def plan_of(
    model: str, *, clients: dict[str, Any] | None = None, rounds: int = 3, **privacy: Any
) -> Plan:
    """A plan with 3 batches of 8 per epoch, the last one padded."""
    by_example = {"unit": "example", "delta": 5e-4} if model.endswith("-example") else {}
    return plan_from_dict(
        {
            "version": 1,
            "task": {"model": model.split("-")[0]},
            "data": {"source": "digits"},
            "clients": {
                "population": 50,
                "clients_per_round": 4,
                "examples_per_client": EXAMPLES,
                "sampling": "poisson",
                **(clients or {}),
            },
            "local_training": {
                "epochs": 2,
                "batch_size": 8,
                "learning_rate": 0.1,
                "optimizer": "momentum" if "-momentum" in model else "sgd",
                "optimizer_state": "keep" if "-keep" in model else "reset",
            },
            "privacy": {
                "clip_norm": 0.5,
                "delta": 1e-3,
                "smallest_cohort": 2,
                "noise_multiplier": 2.0,
                **by_example,
                **privacy,
            },
            "server": {"rounds": rounds},
        }
    )


@dataclass(frozen=True)
class SignedTask:
    """A task as a server holds it, with the author's key."""

    manifest: Manifest
    raw: bytes
    signature: str
    task_key: str
    client: bytes
    weights: np.ndarray

    @property
    def weights_bytes(self) -> bytes:
        return vector_to_bytes(self.weights)


def sign_task(
    files: Path,
    model: str = "mlp",
    *,
    author: Ed25519PrivateKey | None = None,
    privacy: dict[str, Any] | None = None,
    clients: dict[str, Any] | None = None,
    rounds: int = 3,
    **changes: Any,
) -> SignedTask:
    """A signed task of a file in `files`; `changes` replace manifest fields."""
    author = author or Ed25519PrivateKey.generate()
    with np.load(files / f"{model}.npz") as stored:
        weights = stored["weights"]
        layout = TensorLayout(
            tuple(map(str, stored["names"])),
            tuple(tuple(map(int, s.split(","))) for s in stored["shapes"]),
        )
    client = (files / f"{model}.tflite").read_bytes()
    now = int(time.time())
    manifest = Manifest(
        task_id="5" * 32,
        plan=plan_of(model, clients=clients, rounds=rounds, **(privacy or {})),
        layout=layout,
        interface=ExampleInterface(
            (ExampleTensor("x", "float32", SHAPES[model]),),
            ExampleTensor("y", "int32", ()),
            output_shape=(CLASSES,),
        ),
        files={
            CLIENT_FILE: FileDigest.of(client),
            WEIGHTS_FILE: FileDigest.of(vector_to_bytes(weights)),
            KERAS_FILE: FileDigest.of(KERAS_CONTENT),
        },
        valid_from_s=now - 60,
        valid_until_s=now + 3600,
        central_epsilon=4.0,
        dp_method=DpMethod("one_pass", "a test") if model.endswith("-example") else None,
    )
    manifest = replace(manifest, **changes)
    raw = manifest_to_bytes(manifest)
    return SignedTask(
        manifest, raw, sign_manifest(author, raw), public_key_hex(author), client, weights
    )


def write_task(task: SignedTask, folder: Path) -> Path:
    """The task folder that `dpfl-server run` takes."""
    folder.mkdir()
    (folder / MANIFEST_FILE).write_bytes(task.raw)
    (folder / SIGNATURE_FILE).write_text(task.signature + "\n")
    (folder / PUBLIC_KEY_FILE).write_text(task.task_key + "\n")
    (folder / CLIENT_FILE).write_bytes(task.client)
    (folder / WEIGHTS_FILE).write_bytes(task.weights_bytes)
    (folder / KERAS_FILE).write_bytes(KERAS_CONTENT)
    return folder


def save_examples(path: Path, model: str = "mlp", *, seed: int = 0, count: int = EXAMPLES) -> Path:
    """One device's examples, random and reproducible."""
    generator = np.random.default_rng(seed)
    x = generator.random((count, *SHAPES[model]), dtype=np.float32)
    np.savez(path, x=x, y=generator.integers(0, CLASSES, count).astype(np.int32))
    return path


def flags(**options: object) -> list[str]:
    """Command-line options: `flags(task_key="ab")` is ["--task-key=ab"]."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
