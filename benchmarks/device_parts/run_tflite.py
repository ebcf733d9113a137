"""Steps of `client.tflite` in an interpreter, and the noise of a step by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.noise import gaussian_noise

RATE, CLIP_NORM = np.float32(0.01), np.float32(1.0)


def tflite_sgd(folder: Path) -> Callable[[], object]:
    """One call of `train`."""
    return _step(folder, signatures.TRAIN, {})


def tflite_dp(folder: Path) -> Callable[[], object]:
    """One call of `train_dp`; its noise is made once."""
    noise = np.zeros_like(np.load(folder / "weights.npy"))
    return _step(folder, signatures.TRAIN_DP, {"clip_norm": CLIP_NORM, "noise": noise})


def noise(folder: Path) -> Callable[[], object]:
    """The noise of one step."""
    size = len(np.load(folder / "weights.npy", mmap_mode="r"))
    return lambda: gaussian_noise(size, stddev=1.0)


def _step(folder: Path, signature: str, more: dict[str, object]) -> Callable[[], object]:
    interpreter = load_interpreter((folder / "client.tflite").read_bytes())
    interpreter.get_signature_runner(signatures.SET_WEIGHTS)(
        weights=np.load(folder / "weights.npy")
    )
    with np.load(folder / "batch.npz") as batch:
        inputs = {**batch, **more, "learning_rate": RATE}
    inputs["weight"] = np.ones(len(inputs["y"]), np.float32)
    run = interpreter.get_signature_runner(signature)
    # The runner refers to its interpreter weakly.
    return lambda kept=interpreter: run(**inputs)
