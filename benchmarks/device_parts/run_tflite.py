"""Steps of client files in an interpreter, as a device runs them, and the noise of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mobile_client.step import TrainingStep
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.noise import fill_with_noise, gaussian_noise
from tf_dpfl.protocol.plan import LocalTraining
from tf_dpfl.protocol.private_step import sensitivity_of_step

RATE, CLIP_NORM, NOISE_MULTIPLIER = 0.01, 1.0, 1.0


class Step:
    """One step on the batch of `folder`: its inputs are handed over and it is run.

    `prepare` does before each what a device does while it draws the noise: the values
    go straight to where the step reads them, so that nothing is left to hand over. The
    values are drawn once.
    """

    def __init__(self, folder: Path, file: str, signature: str):
        self._interpreter = load_interpreter((folder / file).read_bytes())
        self._interpreter.get_signature_runner(signatures.SET_WEIGHTS)(
            weights=np.load(folder / "weights.npy")
        )
        self._step = TrainingStep(self._interpreter, signature)
        with np.load(folder / "batch.npz") as batch:
            self._inputs = {**batch, "learning_rate": np.float32(RATE)}
        size = len(self._inputs["y"])
        self._inputs["weight"] = np.ones(size, np.float32)
        self._noise = [np.empty_like(part) for part in self._step.noise()]
        if signature == signatures.TRAIN_DP:
            sensitivity = sensitivity_of_step(LocalTraining(1, size, RATE), clip_norm=CLIP_NORM)
            self._inputs["sensitivity"] = np.float32(sensitivity)
            fill_with_noise(self._noise, stddev=NOISE_MULTIPLIER * sensitivity)

    def prepare(self) -> None:
        """Puts the noise in place."""
        for part, values in zip(self._step.noise(), self._noise):
            np.copyto(part, values)

    def __call__(self) -> None:
        """What is timed."""
        self._step.write(self._inputs)
        self._step.run()


def tflite_sgd(folder: Path) -> Step:
    """The step of the plan with the unit "user"."""
    return Step(folder, "user.tflite", signatures.TRAIN)


def tflite_dp(folder: Path) -> Step:
    """The step of the plan with the unit "example"."""
    return Step(folder, "client.tflite", signatures.TRAIN_DP)


def noise(folder: Path) -> Callable[[], object]:
    """The noise of one step."""
    size = len(np.load(folder / "weights.npy", mmap_mode="r"))
    return lambda: gaussian_noise(size, stddev=1.0)
