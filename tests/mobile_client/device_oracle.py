"""The contract's local training in float64 NumPy: the oracle of the device's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from device_task import CLASSES, SignedTask


def train_mlp(
    weights: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    task: SignedTask,
    *,
    velocity: np.ndarray | None = None,
) -> np.ndarray:
    """The contract's local training in float64 NumPy, for the registry's mlp.

    `velocity`, where it is kept, is gone on from and changed.
    """

    def mean_gradients(tensors: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return mlp_gradient(tensors, x, y) / len(y)

    return _train(weights, x, y, task, mean_gradients, velocity)


def train_mlp_privately(
    weights: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    task: SignedTask,
    *,
    noises: Iterator[np.ndarray],
) -> np.ndarray:
    """DP-SGD (Abadi et al. 1607.00133), one example at a time; the divisor is the batch size.

    `noises` are those on the sums of clipped gradients.
    """
    clip_norm = task.manifest.plan.privacy.clip_norm
    size = task.manifest.plan.local_training.batch_size

    def noised(tensors: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total = next(noises).astype(np.float64)
        for i in range(len(y)):
            gradient = mlp_gradient(tensors, x[i : i + 1], y[i : i + 1])
            total += gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
        return total / size

    return _train(weights, x, y, task, noised)


def mlp_gradient(tensors: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The flat gradient of the summed loss of the examples."""
    w1, b1, w2, b2 = tensors
    flat = x.reshape(-1, w1.shape[0])
    hidden = flat @ w1 + b1
    active = np.maximum(hidden, 0)
    logits = active @ w2 + b2
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    delta = exponent / exponent.sum(1, keepdims=True) - np.eye(CLASSES)[y]
    back = (delta @ w2.T) * (hidden > 0)
    parts = [flat.T @ back, back.sum(0), active.T @ delta, delta.sum(0)]
    return np.concatenate([part.ravel() for part in parts])


def _train(
    weights: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    task: SignedTask,
    gradient_of: Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray], np.ndarray],
    velocity: np.ndarray | None = None,
) -> np.ndarray:
    """Stored order, `epochs` times, with sgd or momentum."""
    settings, layout = task.manifest.plan.local_training, task.manifest.layout
    momentum = settings.momentum if settings.optimizer == "momentum" else 0.0
    current = weights.astype(np.float64)
    velocity = np.zeros(len(weights)) if velocity is None else velocity
    for _ in range(settings.epochs):
        for start in range(0, len(y), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            gradient = gradient_of(layout.split(current), x[part], y[part])
            velocity[:] = momentum * velocity + gradient
            current = current - settings.learning_rate * velocity
    return current
