"""One round of training in the TFLite interpreter: weights in, private update out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.manifest import CLIENT_FILE, Manifest
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
        self._input_shape = manifest.interface.inputs[0].shape
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
        self, *, weights: Float32, x: Float32, y: NDArray[np.int32], noise: Float32
    ) -> Float32:
        """This device's report: clip(trained - `weights`) + `noise`.

        Args:
          weights: the round's weights, float32 [d].
          x: examples in stored order, float32 [n, *input_shape].
          y: class ids, int32 [n].
          noise: this device's share, float32 [d], used once.

        Returns:
          float32 [d], finite; without the noise its norm is at most the plan's
          clip_norm, which is checked here whatever the file computes.

        Raises:
          TaskError: the file computes something else.
        """
        try:
            size = int(self._set_weights(weights=weights)["size"])
            self._train_epochs(x, y)
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

    def _train_epochs(self, x: Float32, y: NDArray[np.int32]) -> None:
        """Stored order, `epochs` times; the last batch is padded with weight 0."""
        training = self._plan.local_training
        size, rate = training.batch_size, np.float32(training.learning_rate)
        for _ in range(training.epochs):
            for start in range(0, len(y), size):
                batch = _padded_batch(x, y, start, size, self._input_shape)
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
    x: Float32, y: NDArray[np.int32], start: int, batch_size: int, input_shape: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """Examples [start, start + batch_size) as one batch of fixed size."""
    part_x, part_y = x[start : start + batch_size], y[start : start + batch_size]
    count = len(part_y)
    batch_x = np.zeros((batch_size, *input_shape), np.float32)
    batch_y = np.zeros(batch_size, np.int32)
    weight = np.zeros(batch_size, np.float32)
    batch_x[:count], batch_y[:count], weight[:count] = part_x, part_y, 1.0
    return {"x": batch_x, "y": batch_y, "weight": weight}
