"""DP-SGD in full TensorFlow by tensorflow-privacy: its vectorised optimizer and its DPModel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from keras_models import UNROLLED
from run_tensorflow import RATE, load
from tensorflow_privacy import VectorizedDPKerasSGDOptimizer
from tensorflow_privacy.privacy.fast_gradient_clipping.layer_registry import (
    make_default_layer_registry,
)
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

CLIP_NORM = 1.0


def tf_privacy_optimizer(folder: Path) -> Callable[[], object]:
    """One step of the vectorised optimizer, one example a microbatch.

    It always draws its noise, with TensorFlow's generator; that is in the time.
    """
    model, x, y = load(folder)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    optimizer = VectorizedDPKerasSGDOptimizer(CLIP_NORM, 1.0, len(y), learning_rate=RATE)

    @tf.function
    def step(x, y):
        optimizer.minimize(lambda: loss(y, model(x, training=True)), model.trainable_variables)

    return lambda: step(x, y)


def tf_privacy_dpmodel(folder: Path) -> Callable[[], object]:
    """One `train_step` without noise, with XLA and its fast norms where every layer has them.

    Its vectorised map cannot take a GRU's while loop: it gets the GRU unrolled.
    """
    model, x, y = load(folder, UNROLLED)
    private = DPModel(
        CLIP_NORM,
        0.0,
        use_xla=True,
        layer_registry=make_default_layer_registry(),
        inputs=model.inputs,
        outputs=model.outputs,
    )
    private.compile(
        tf.keras.optimizers.legacy.SGD(RATE),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    @tf.function
    def step(x, y):
        return private.train_step((x, y))

    return lambda: step(x, y)["loss"].numpy()
