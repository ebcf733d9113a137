"""The benchmark's models in Keras, each with ids below or images of one shape."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from models.registry import build_model

layers = tf.keras.layers

CLASSES = 10
VOCABULARY = {"text": 10_000, "gru": 1_000, "transformer": 1_000}
"""Models that read ids, and how many ids there are; the others read images."""


def _text() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            tf.keras.Input((64,), dtype="int32"),
            layers.Embedding(VOCABULARY["text"], 16),
            layers.GlobalAveragePooling1D(),
            layers.Dense(32, "relu"),
            layers.Dense(CLASSES),
        ]
    )


def _gru(*, unroll: bool = False) -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            tf.keras.Input((32,), dtype="int32"),
            layers.Embedding(VOCABULARY["gru"], 16),
            layers.GRU(32, unroll=unroll),
            layers.Dense(CLASSES),
        ]
    )


def _resnet() -> tf.keras.Model:
    image = tf.keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same")(image)
    for filters, stride in ((16, 1), (16, 1), (32, 2), (32, 1)):
        skip = x if stride == 1 else layers.Conv2D(filters, 1, stride)(x)
        x = layers.Conv2D(filters, 3, stride, padding="same")(x)
        x = layers.ReLU()(layers.GroupNormalization(4)(x))
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.ReLU()(layers.Add()([layers.GroupNormalization(4)(x), skip]))
    return tf.keras.Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def _transformer() -> tf.keras.Model:
    ids = tf.keras.Input((32,), dtype="int32")
    x = layers.Embedding(VOCABULARY["transformer"], 32)(ids)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 8)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(32)(layers.Dense(64, "relu")(x)))
    return tf.keras.Model(ids, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


MODELS: dict[str, Callable[[], tf.keras.Model]] = {
    "mlp": lambda: build_model("mlp", input_shape=(28, 28, 1), classes=CLASSES),
    "cnn": lambda: build_model("cnn", input_shape=(28, 28, 1), classes=CLASSES),
    "text": _text,
    "gru": _gru,
    "resnet": _resnet,
    "transformer": _transformer,
}

UNROLLED = {**MODELS, "gru": lambda: _gru(unroll=True)}
"""The same for a system that cannot take a loop inside a layer."""
