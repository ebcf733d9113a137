"""One round of training in the TFLite interpreter: weights in, private update out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobile_client import probe
from mobile_client.step import TrainingStep
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.clipping import LARGEST_NORM
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.examples import Examples
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.manifest import CLIENT_FILE, Manifest
from tf_dpfl.protocol.noise import gaussian_noise, uniforms
from tf_dpfl.protocol.private_step import sensitivity_of_step
from tf_dpfl.protocol.tensors import Float32

# Float32 rounding of clipped + noise, relative to what is rounded.
_ROUNDING = 1e-6

# The signatures that a round runs: the step, and what is around it.
_NEEDED = {
    "user": (signatures.TRAIN, signatures.SET_WEIGHTS, signatures.PRIVATIZE_UPDATE),
    "example": (signatures.TRAIN_DP, signatures.SET_WEIGHTS, signatures.GET_WEIGHTS),
}
_NEEDED_TO_KEEP = (
    signatures.SET_OPTIMIZER_STATE,
    signatures.GET_OPTIMIZER_STATE,
    signatures.GET_WEIGHTS,
)
# What tells whether an update was clipped.
_NEEDED_TO_COUNT = (signatures.GET_WEIGHTS,)


class Trainer:
    """Runs the signatures of one `client.tflite`.

    An interpreter holds weights and optimizer state, but `set_weights` resets
    both: one trainer serves any number of devices of one process in turn.
    """

    def __init__(self, model: bytes, manifest: Manifest):
        """Loads the file. Raises TaskError when it lacks a signature, or takes other inputs."""
        self._plan = manifest.plan
        self._interface = manifest.interface
        self._layout = manifest.layout
        self._size = manifest.layout.size
        try:
            self._interpreter = load_interpreter(model)
            present = self._interpreter.get_signature_list()
        except (ValueError, RuntimeError) as error:
            raise TaskError(f"{CLIENT_FILE}: not a usable TFLite file: {error}") from None
        self._kept_values = manifest.plan.local_training.kept_values(weights=self._size)
        kept = _NEEDED_TO_KEEP if self._kept_values else ()
        counted = _NEEDED_TO_COUNT if manifest.plan.privacy.adaptive_clipping else ()
        needed = tuple(dict.fromkeys((*_NEEDED[manifest.plan.privacy.unit], *kept, *counted)))
        missing = [name for name in needed if name not in present]
        if missing:
            raise TaskError(f"{CLIENT_FILE}: lacks the signatures {', '.join(missing)}")
        step = needed[0]
        try:
            self._step = TrainingStep(self._interpreter, step)
        except (ValueError, RuntimeError) as error:
            raise TaskError(f"{CLIENT_FILE}: {step} can not be run here: {error}") from None
        private = step == signatures.TRAIN_DP
        names = self._inputs_of_step() | ({"sensitivity"} if private else set())
        self._step.check_inputs(names, noise=manifest.layout if private else None)
        self._probed = False

    def train_round(
        self,
        *,
        weights: Float32,
        examples: Examples,
        noise: Float32,
        clip_norm: float | None = None,
        optimizer_state: Float32 | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Float32:
        """This device's report: clip(trained - `weights`) + `noise`.

        Args:
          weights: the round's weights, float32 [d].
          examples: inputs and target in stored order, [n, ...] each, as the
            manifest's interface says.
          noise: this device's share, float32 [d], used once.
          clip_norm: the round's, where it adapts; by default the plan's.
          optimizer_state: where the optimizer goes on from, float32 [s], for plans that
            keep it; afterwards `optimizer_state()` gives the new one.
          random_bytes: what random layers (Dropout) of the model draw from.

        Returns:
          float32 [d], finite; without the noise its norm is at most the clip norm,
          which is checked here whatever the file computes.

        Raises:
          TaskError: the file computes something else.
        """
        rate = np.float32(self._plan.local_training.learning_rate)
        if clip_norm is None:
            clip_norm = self._plan.privacy.clip_norm
        try:
            self._start_from(weights, optimizer_state)
            for batch in self._batches(examples, random_bytes):
                self._step.write({**batch, "learning_rate": rate})
                self._step.run()
            update: Float32 = self._run(
                signatures.PRIVATIZE_UPDATE,
                initial=weights,
                clip_norm=np.float32(clip_norm),
                noise=noise,
            )["update"]
        except (ValueError, RuntimeError, KeyError) as error:
            raise TaskError(f"{CLIENT_FILE}: training failed: {error!r}") from None
        self._check_shape(update)
        self._check(update, noise, clip_norm)
        return update

    def train_private_steps(
        self,
        *,
        weights: Float32,
        examples: Examples,
        draw_noise: Callable[[Sequence[Float32]], None],
        optimizer_state: Float32 | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Float32:
        """This device's report under a plan with unit "example": trained - `weights`.

        Args:
          weights, examples, optimizer_state, random_bytes: as for `train_round`.
          draw_noise: fills arrays, one a variable in the layout's order and shapes, with
            fresh noise for each step, of the standard deviation that
            `private_step.noise_stddev_of_step` says for the plan. It must not keep them.

        Returns:
          float32 [d], of finite norm. It is private already: each step clipped its
          examples' gradients and added noise.

        Raises:
          TaskError: the file computes something else; before the first training
            of a file that is tried out (`probe`).
        """
        training, clip_norm = self._plan.local_training, self._plan.privacy.clip_norm
        rate = np.float32(training.learning_rate)
        sensitivity = np.float32(sensitivity_of_step(training, clip_norm=clip_norm))
        try:
            self._probe_once(weights, examples, random_bytes)
            self._start_from(weights, optimizer_state)
            for batch in self._batches(examples, random_bytes):
                self._private_step(batch, draw_noise, learning_rate=rate, sensitivity=sensitivity)
            trained: Float32 = self._run(signatures.GET_WEIGHTS)["weights"]
        except (ValueError, RuntimeError, KeyError) as error:
            raise TaskError(f"{CLIENT_FILE}: training failed: {error!r}") from None
        self._check_shape(trained)
        update = trained - weights
        norm = float(np.linalg.norm(update.astype(np.float64)))
        if not norm < LARGEST_NORM:
            raise TaskError(
                f"{CLIENT_FILE}: training has diverged, the update has norm {norm:g}; nothing is "
                "sent"
            )
        return update

    def optimizer_state(self, *, before: Float32, weights: Float32) -> Float32:
        """What the optimizer goes on from after the training just done, float32 [s].

        `before`, what it went on from, is given back where the update from `weights`, the
        round's, is broken and counts as zero, or the new state is not finite: as in the
        simulation.
        """
        try:
            state = np.array(self._run(signatures.GET_OPTIMIZER_STATE)["state"], np.float32)
        except (ValueError, RuntimeError, KeyError) as error:
            raise TaskError(f"{CLIENT_FILE}: training failed: {error!r}") from None
        if state.shape != before.shape:
            raise TaskError(
                f"{CLIENT_FILE}: gives an optimizer state of shape {state.shape}, the plan's has "
                f"{self._kept_values} values"
            )
        usable = self.norm_of_update(weights) < LARGEST_NORM and np.isfinite(state).all()
        return state if usable else before

    def norm_of_update(self, weights: Float32) -> float:
        """L2 norm of what the training just done moved from `weights`, the round's.

        Before clipping, and so as private as the examples; NaN or infinite where training
        has diverged.
        """
        try:
            trained: Float32 = self._run(signatures.GET_WEIGHTS)["weights"]
        except (ValueError, RuntimeError, KeyError) as error:
            raise TaskError(f"{CLIENT_FILE}: training failed: {error!r}") from None
        self._check_shape(trained)
        return float(np.linalg.norm(trained.astype(np.float64) - weights.astype(np.float64)))

    def _inputs_of_step(self) -> set[str]:
        """What `train` takes."""
        random = {"random"} if self._interface.random_values else set()
        tensors = {tensor.name for tensor in self._interface.tensors}
        return tensors | random | {"weight", "learning_rate"}

    def _run(self, signature: str, **inputs: Any) -> Mapping[str, Any]:
        """Runs a signature other than the step; see `TrainingStep` for why none is kept."""
        outputs: Mapping[str, Any] = self._interpreter.get_signature_runner(signature)(**inputs)
        return outputs

    def _start_from(self, weights: Float32, optimizer_state: Float32 | None = None) -> None:
        size = int(self._run(signatures.SET_WEIGHTS, weights=weights)["size"])
        if size != self._size:
            raise TaskError(
                f"{CLIENT_FILE}: has {size} weights, the manifest's layout has {self._size}"
            )
        if optimizer_state is not None:
            self._run(signatures.SET_OPTIMIZER_STATE, state=optimizer_state)

    def _private_step(
        self,
        batch: Mapping[str, NDArray[Any]],
        draw_noise: Callable[[Sequence[Float32]], None],
        *,
        learning_rate: np.float32,
        sensitivity: np.float32,
    ) -> None:
        """One step of `train_dp`."""
        draw_noise(self._step.noise())
        self._step.write({**batch, "learning_rate": learning_rate, "sensitivity": sensitivity})
        self._step.run()

    def _probe_once(
        self, weights: Float32, examples: Examples, random_bytes: Callable[[int], bytes]
    ) -> None:
        """Tries the file out on this device's first batch, unless it was done."""
        training = self._plan.local_training
        if self._probed or not probe.measurable(training):
            return

        def step(
            start: Float32, batch: Any, rate: np.float32, sensitivity: np.float32, noise: Float32
        ) -> Float32:
            self._start_from(start)

            def give(parts: Sequence[Float32]) -> None:
                for part, share in zip(parts, self._layout.split(noise)):
                    np.copyto(part, share)

            self._private_step(batch, give, learning_rate=rate, sensitivity=sensitivity)
            after: Float32 = self._run(signatures.GET_WEIGHTS)["weights"]
            self._check_shape(after)
            return after

        probe.check_step(
            step,
            next(self._batches(examples, random_bytes)),
            training=training,
            weights=weights,
            clip_norm=self._plan.privacy.clip_norm,
            noise=gaussian_noise(self._size, stddev=1.0, random_bytes=random_bytes),
        )
        self._probed = True

    def _batches(
        self, examples: Mapping[str, NDArray[Any]], random_bytes: Callable[[int], bytes]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Stored order, `epochs` times; the last batch is padded with weight 0."""
        training = self._plan.local_training
        size, values = training.batch_size, self._interface.random_values
        count = len(examples[self._interface.target.name])
        for _ in range(training.epochs):
            for start in range(0, count, size):
                batch = _padded_batch(examples, start, size)
                if values:
                    batch["random"] = uniforms(size * values, random_bytes).reshape(size, values)
                yield batch

    def _check_shape(self, vector: Float32) -> None:
        if vector.shape != (self._size,):
            raise TaskError(
                f"{CLIENT_FILE}: gives a vector of shape {vector.shape}, the manifest's layout "
                f"has {self._size} weights"
            )

    def _check(self, update: Float32, noise: Float32, bound: float) -> None:
        """Raises TaskError unless `update` is finite and bounded around `noise`."""
        if not np.isfinite(update).all():
            raise TaskError(f"{CLIENT_FILE}: the update is not finite; nothing is sent")
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
