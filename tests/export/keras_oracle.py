"""Training as Keras and NumPy do it: a GradientTape, Keras' loss and optimizer, float64 sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.preparing import prepare_model

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def flat(tensors: Any) -> np.ndarray:
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors])


def set_flat(model: tf.keras.Model, values: np.ndarray) -> None:
    begin = 0
    for variable in model.trainable_variables:
        size = int(np.prod(variable.shape))
        variable.assign(values[begin : begin + size].reshape(variable.shape).astype(np.float32))
        begin += size


def gradients_of(model: tf.keras.Model) -> Callable[[dict[str, Any]], list[Any]]:
    """A function batch -> dense gradients of Keras' mean loss.

    Keras' own layers run, but for models with random layers, which draw for
    themselves: of these what is prepared runs, and is fed the batch's uniforms.
    """
    prepared = prepare_model(model)

    def forward(batch: dict[str, Any]) -> Any:
        inputs = [v for name, v in batch.items() if name not in ("y", "random")]
        if prepared.random_values:
            return prepared(inputs, training=True, random=batch["random"])
        return model(inputs[0] if len(inputs) == 1 else inputs, training=True)

    @tf.function(reduce_retracing=False)
    def run(batch: dict[str, Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            value = LOSS(batch["y"], forward(batch))
        found = tape.gradient(value, model.trainable_variables)
        return [
            tf.zeros_like(v) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(found, model.trainable_variables)
        ]

    return lambda batch: run({name: tf.constant(values) for name, values in batch.items()})


def sgd_steps(model: tf.keras.Model, batches: list[dict[str, Any]], *, rate: float) -> np.ndarray:
    """The weights after plain Keras' steps, float64 [d]; the model's are changed."""
    optimizer, gradients = tf.keras.optimizers.legacy.SGD(rate), gradients_of(model)
    for batch in batches:
        optimizer.apply_gradients(zip(gradients(batch), model.trainable_variables))
    return flat(model.trainable_variables)


def private_steps(
    model: tf.keras.Model,
    batches: list[dict[str, Any]],
    weights: list[np.ndarray],
    noises: list[np.ndarray],
    *,
    rate: float,
    clip_norm: float,
) -> np.ndarray:
    """The weights after DP-SGD with the given noise, one example at a time, float64 [d]."""
    gradients = gradients_of(model)
    for batch, weight, noise in zip(batches, weights, noises):
        total = noise.astype(np.float64)
        for i in np.flatnonzero(weight):
            gradient = flat(gradients({name: v[i : i + 1] for name, v in batch.items()}))
            total = total + gradient * min(1.0, clip_norm / max(np.linalg.norm(gradient), 1e-30))
        set_flat(model, flat(model.trainable_variables) - rate / len(weight) * total)
    return flat(model.trainable_variables)


def median_norm(model: tf.keras.Model, batch: dict[str, Any]) -> float:
    """The median of the examples' gradient norms: half of them are clipped to it."""
    gradients = gradients_of(model)
    count = len(batch["y"])
    norms = [
        np.linalg.norm(flat(gradients({name: v[i : i + 1] for name, v in batch.items()})))
        for i in range(count)
    ]
    return float(np.float32(np.median(norms)))
