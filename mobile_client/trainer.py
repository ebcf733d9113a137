"""One round of training in the TFLite interpreter: weights in, private update out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.examples import Examples
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.manifest import CLIENT_FILE, Manifest
from tf_dpfl.protocol.noise import uniforms
from tf_dpfl.protocol.tensors import Float32

# Float32 rounding of clipped + noise, relative to what is rounded.
_ROUNDING = 1e-6

_NEEDED = (signatures.SET_WEIGHTS, signatures.TRAIN, signatures.PRIVATIZE_UPDATE)


class Trainer:
    """Runs the signatures of one `client.tflite`.

    An interpreter holds weights and optimizer state, but `set_weights` resets
    both: one trainer serves any number of devices of one process in turn.
    """

    def __init__(self, model: bytes, manifest: Manifest):
        """Loads the file. Raises TaskError when it lacks a signature."""
        self._plan = manifest.plan
        self._interface = manifest.interface
        self._size = manifest.layout.size
        try:
            self._interpreter = load_interpreter(model)
            present = self._interpreter.get_signature_list()
        except (ValueError, RuntimeError) as error:
            raise TaskError(f"{CLIENT_FILE}: not a usable TFLite file: {error}") from None
        missing = [name for name in _NEEDED if name not in present]
        if missing:
            raise TaskError(f"{CLIENT_FILE}: lacks the signatures {', '.join(missing)}")
        self._set_weights, self._train, self._privatize = (
            self._interpreter.get_signature_runner(name) for name in _NEEDED
        )

    def train_round(
        self,
        *,
        weights: Float32,
        examples: Examples,
        noise: Float32,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Float32:
        """This device's report: clip(trained - `weights`) + `noise`.

        Args:
          weights: the round's weights, float32 [d].
          examples: inputs and target in stored order, [n, ...] each, as the
            manifest's interface says.
          noise: this device's share, float32 [d], used once.
          random_bytes: what random layers (Dropout) of the model draw from.

        Returns:
          float32 [d], finite; without the noise its norm is at most the plan's
          clip_norm, which is checked here whatever the file computes.

        Raises:
          TaskError: the file computes something else.
        """
        try:
            size = int(self._set_weights(weights=weights)["size"])
            self._train_epochs(examples, random_bytes)
            update: Float32 = self._privatize(
                initial=weights,
                clip_norm=np.float32(self._plan.privacy.clip_norm),
                noise=noise,
            )["update"]
        except (ValueError, RuntimeError, KeyError) as error:
            raise TaskError(f"{CLIENT_FILE}: training failed: {error!r}") from None
        if size != self._size or update.shape != (self._size,):
            raise TaskError(
                f"{CLIENT_FILE}: has {size} weights and an update of shape {update.shape}, "
                f"the manifest's layout has {self._size}"
            )
        self._check(update, noise)
        return update

    def _train_epochs(
        self, examples: Mapping[str, NDArray[Any]], random_bytes: Callable[[int], bytes]
    ) -> None:
        """Stored order, `epochs` times; the last batch is padded with weight 0."""
        training = self._plan.local_training
        size, rate = training.batch_size, np.float32(training.learning_rate)
        values = self._interface.random_values
        count = len(examples[self._interface.target.name])
        for _ in range(training.epochs):
            for start in range(0, count, size):
                batch = _padded_batch(examples, start, size)
                if values:
                    batch["random"] = uniforms(size * values, random_bytes).reshape(size, values)
                self._train(**batch, learning_rate=rate)

    def _check(self, update: Float32, noise: Float32) -> None:
        """Raises TaskError unless `update` is finite and bounded around `noise`."""
        if not np.isfinite(update).all():
            raise TaskError(f"{CLIENT_FILE}: the update is not finite; nothing is sent")
        bound = self._plan.privacy.clip_norm
        signal = float(np.linalg.norm(update.astype(np.float64) - noise.astype(np.float64)))
        rounding = _ROUNDING * float(np.linalg.norm(noise.astype(np.float64)))
        if not signal <= bound + rounding:
            raise TaskError(
                f"{CLIENT_FILE}: the update without its noise has norm {signal:g}, more than "
                f"clip_norm={bound:g}: the file does not clip or does not add the noise; "
                "nothing is sent"
            )


class TrainerCache:
    """Keeps the last task's trainer, so that a process builds one interpreter."""

    def __init__(self) -> None:
        self._kept: tuple[Manifest, Trainer] | None = None

    def trainer(self, manifest: Manifest, load_model: Callable[[], bytes]) -> Trainer:
        """The trainer of `manifest`, whose file `load_model` gives if it is needed.

        Raises TaskError when the file is not the manifest's.
        """
        if self._kept is None or self._kept[0] != manifest:
            model = load_model()
            manifest.files[CLIENT_FILE].check(CLIENT_FILE, model)
            self._kept = (manifest, Trainer(model, manifest))
        return self._kept[1]


def _padded_batch(
    examples: Mapping[str, NDArray[Any]], start: int, batch_size: int
) -> dict[str, NDArray[Any]]:
    """Examples [start, start + batch_size) as one batch of fixed size."""
    batch = {}
    for name, values in examples.items():
        part = values[start : start + batch_size]
        batch[name] = np.zeros((batch_size, *values.shape[1:]), values.dtype)
        batch[name][: len(part)] = part
    count = len(part)
    batch["weight"] = (np.arange(batch_size) < count).astype(np.float32)
    return batch
