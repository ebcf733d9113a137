"""The contract's local training in float64 NumPy: the oracle of the device's tests."""

from __future__ import annotations

import numpy as np
from device_task import CLASSES, SignedTask


def train_mlp(weights: np.ndarray, x: np.ndarray, y: np.ndarray, task: SignedTask) -> np.ndarray:
    """The contract's local training in float64 NumPy, for the registry's mlp."""
    settings = task.manifest.plan.local_training
    w1, b1, w2, b2 = (
        t.astype(np.float64) for t in task.manifest.layout.split(weights.astype(np.float32))
    )
    velocity = [np.zeros_like(t) for t in (w1, b1, w2, b2)]
    for _ in range(settings.epochs):
        for start in range(0, len(y), settings.batch_size):
            part_x = x[start : start + settings.batch_size].reshape(-1, w1.shape[0])
            part_y = y[start : start + settings.batch_size]
            hidden = part_x @ w1 + b1
            active = np.maximum(hidden, 0)
            logits = active @ w2 + b2
            exponent = np.exp(logits - logits.max(1, keepdims=True))
            delta = exponent / exponent.sum(1, keepdims=True) - np.eye(CLASSES)[part_y]
            delta /= len(part_y)
            back = (delta @ w2.T) * (hidden > 0)
            gradients = [part_x.T @ back, back.sum(0), active.T @ delta, delta.sum(0)]
            for i, (tensor, gradient) in enumerate(zip((w1, b1, w2, b2), gradients)):
                momentum = settings.momentum if settings.optimizer == "momentum" else 0.0
                velocity[i] = momentum * velocity[i] + gradient
                tensor -= settings.learning_rate * velocity[i]
    return np.concatenate([t.ravel() for t in (w1, b1, w2, b2)])
