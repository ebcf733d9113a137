"""Small image classifiers. All end in logits and take float32 images in [0, 1].

Layers are named, so that a model's weights have the same names however many
models a process has built before.
"""

from __future__ import annotations

import tensorflow as tf

from tf_dpfl.protocol.errors import ModelError

# Sides from which two convolutions without padding and two pools still fit.
_SMALLEST_VALID_SIDE = 13
_SMALLEST_SAME_SIDE = 7


def linear(*, input_shape: tuple[int, ...], classes: int) -> tf.keras.Model:
    """Logistic regression on the flattened input."""
    return tf.keras.Sequential(
        [
            tf.keras.Input(input_shape, name="image"),
            tf.keras.layers.Flatten(name="flatten"),
            tf.keras.layers.Dense(classes, name="logits"),
        ],
        name="linear",
    )


def mlp(*, input_shape: tuple[int, ...], classes: int) -> tf.keras.Model:
    """One hidden layer of 128 ReLU units on the flattened input."""
    return tf.keras.Sequential(
        [
            tf.keras.Input(input_shape, name="image"),
            tf.keras.layers.Flatten(name="flatten"),
            tf.keras.layers.Dense(128, activation="relu", name="hidden"),
            tf.keras.layers.Dense(classes, name="logits"),
        ],
        name="mlp",
    )


def cnn(*, input_shape: tuple[int, ...], classes: int) -> tf.keras.Model:
    """The small DP CNN: 26,010 weights for 28 x 28 x 1 and 10 classes.

    Conv 16 8x8 stride 2, pool, conv 32 4x4 stride 2, pool, dense 32, dense. Its
    tanh keeps activations and so gradients bounded, which suits clipping better
    than ReLU. The second convolution has no padding; images with a side below
    13 pixels are too small for that, there it keeps the size ("same").

    Raises ModelError unless `input_shape` is [height, width, channels] with
    sides of at least 7. Source: Papernot et al. 2020 (2007.14191), table 1.
    """
    if len(input_shape) != 3 or not min(input_shape[:2]) >= _SMALLEST_SAME_SIDE:
        raise ModelError(
            f"cnn: input_shape={list(input_shape)} must be [height, width, channels] with "
            f"sides of at least {_SMALLEST_SAME_SIDE}; use mlp or linear"
        )
    padding = "valid" if min(input_shape[:2]) >= _SMALLEST_VALID_SIDE else "same"
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input(input_shape, name="image"),
            layers.Conv2D(
                16, 8, strides=2, padding="same", activation="tanh", name="convolution_1"
            ),
            layers.MaxPool2D(2, strides=1, name="pool_1"),
            layers.Conv2D(
                32, 4, strides=2, padding=padding, activation="tanh", name="convolution_2"
            ),
            layers.MaxPool2D(2, strides=1, name="pool_2"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, activation="tanh", name="hidden"),
            layers.Dense(classes, name="logits"),
        ],
        name="cnn",
    )
