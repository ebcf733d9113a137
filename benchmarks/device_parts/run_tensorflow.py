"""Plain SGD in full TensorFlow: one `tf.function` with a GradientTape."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from keras_models import MODELS

RATE = 0.01


def load(
    folder: Path, models: Mapping[str, Any] = MODELS
) -> tuple[tf.keras.Model, tf.Tensor, tf.Tensor]:
    """The Keras model of a workload's folder, unchanged, and its batch; one thread."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = models[folder.name.split("-")[0]]()
    with np.load(folder / "batch.npz") as batch:
        return model, tf.constant(batch["x"]), tf.constant(batch["y"])


def tf_sgd(folder: Path) -> Callable[[], object]:
    """One step, the batch already a tensor; gradients of embeddings stay sparse."""
    model, x, y = load(folder)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        for variable, gradient in zip(variables, tape.gradient(value, variables)):
            if isinstance(gradient, tf.IndexedSlices):
                variable.scatter_sub(tf.IndexedSlices(RATE * gradient.values, gradient.indices))
            else:
                variable.assign_sub(RATE * gradient)
        return value

    return lambda: step(x, y).numpy()
