"""Steps of `client.tflite` in an interpreter, and the noise of a step by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.noise import gaussian_noise

RATE, CLIP_NORM = np.float32(0.01), np.float32(1.0)


def tflite_sgd(folder: Path) -> Callable[[], object]:
    """One call of `train`."""
    return _step(folder, signatures.TRAIN)


def tflite_dp(folder: Path) -> Callable[[], object]:
    """One call of `train_dp`; its noise is made once, and handed over in each."""
    return _step(folder, signatures.TRAIN_DP, clip_norm=CLIP_NORM)


def noise(folder: Path) -> Callable[[], object]:
    """The noise of one step."""
    size = len(np.load(folder / "weights.npy", mmap_mode="r"))
    return lambda: gaussian_noise(size, stddev=1.0)


def _step(folder: Path, signature: str, **more: Any) -> Callable[[], object]:
    interpreter = load_interpreter((folder / "client.tflite").read_bytes())
    interpreter.get_signature_runner(signatures.SET_WEIGHTS)(
        weights=np.load(folder / "weights.npy")
    )
    run = interpreter.get_signature_runner(signature)
    with np.load(folder / "batch.npz") as batch:
        inputs = {**batch, **more, **_noise(run), "learning_rate": RATE}
    inputs["weight"] = np.ones(len(inputs["y"]), np.float32)
    # The runner refers to its interpreter weakly.
    return lambda kept=interpreter: run(**inputs)


def _noise(run: Any) -> dict[str, Any]:
    """Parts of one vector, as a device cuts it up, for the noise inputs that `run` has."""
    details = run.get_input_details()
    names = [name for name in signatures.noise_inputs(details) if name in details]
    shapes = [tuple(details[name]["shape"]) for name in names]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(gaussian_noise(int(sum(map(math.prod, shapes))), stddev=1.0), ends[:-1])
    return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes)}
