"""Models with every layer that per-example gradients are tested on, and their oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.per_example import clipped_gradient_sum

layers = tf.keras.layers
CLASSES = 5
BATCH = 6


def stack(shape: tuple[int, ...], *parts: Any, dtype: str = "float32") -> tf.keras.Model:
    return tf.keras.Sequential([layers.InputLayer(shape, dtype=dtype), *parts])


def series(*parts: Any) -> tf.keras.Model:
    return stack((6, 4), *parts, layers.Flatten(), layers.Dense(CLASSES))


def image(*parts: Any) -> tf.keras.Model:
    return stack((8, 7, 4), *parts, layers.Flatten(), layers.Dense(CLASSES))


def text(*parts: Any, mask_zero: bool = False) -> tf.keras.Model:
    return stack((9,), layers.Embedding(7, 4, mask_zero=mask_zero), *parts, dtype="int32")


class GroupedConvolution(layers.Layer):
    """Keras' own grouped convolution is a compiled function on the CPU."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(3, 3, shape[-1] // 2, 6))

    def call(self, x):
        return tf.nn.conv2d(x, self.kernel, strides=2, padding="SAME")


class PiecesOfOneKernel(layers.Layer):
    """A weight that is split, transposed and negated before it meets the batch."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 8))

    def call(self, x):
        left, right = tf.split(self.kernel, 2, axis=1)
        turned = -tf.transpose(right)
        return tf.matmul(x, left) * tf.sigmoid(tf.matmul(x, turned, transpose_b=True))


class OneKernelInTwoForms(layers.Layer):
    """A weight used as a matrix and entry by entry."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], shape[-1]))

    def call(self, x):
        scaled = tf.reduce_sum(x[:, :, None] * self.kernel, axis=1)
        return tf.matmul(tf.tanh(tf.matmul(x, self.kernel)), self.kernel, transpose_b=True) + scaled


class Overlapping(layers.Layer):
    """Two pieces of one weight that share entries."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 6))

    def call(self, x):
        return tf.matmul(x, self.kernel[:, :4]) + tf.matmul(x, self.kernel[:, 2:])


class CentredBatch(layers.Layer):
    """Subtracts the mean over the batch: it mixes examples."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


class SortedAndPooled(layers.Layer):
    """The largest entries in their order, and a smooth maximum of all."""

    def call(self, x):
        smooth = tf.reduce_logsumexp(x, axis=-1, keepdims=True)
        return tf.concat([tf.math.top_k(x, 3).values, smooth], axis=-1)


class PositionsOfShape(layers.Layer):
    """Adds a table of positions, looked up by what is computed from the shape."""

    def build(self, shape):
        self.positions = layers.Embedding(9, shape[-1])
        self.positions.build(())

    def call(self, x):
        return x + self.positions(tf.range(0, tf.shape(x)[-2], 1))


class NormalisedKernel(layers.Layer):
    """Computes with a weight before it meets the batch."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 4))

    def call(self, x):
        return tf.matmul(x, tf.nn.l2_normalize(self.kernel, axis=0))


class OutputOf(layers.Layer):
    """The transposed table of an embedding as output layer."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def call(self, x):
        return tf.matmul(x, self.embedding.embeddings, transpose_b=True)


def tied() -> tf.keras.Model:
    embedding = layers.Embedding(CLASSES, 4)
    x = tf.keras.Input((6,), dtype="int32")
    hidden = layers.Dense(4, "tanh")(embedding(x))
    return tf.keras.Model(x, layers.GlobalAveragePooling1D()(OutputOf(embedding)(hidden)))


def shared() -> tf.keras.Model:
    x = tf.keras.Input((8,))
    dense = layers.Dense(8, "tanh")
    return tf.keras.Model(x, layers.Dense(CLASSES)(dense(dense(x))))


def attention() -> tf.keras.Model:
    x = tf.keras.Input((6, 8))
    attended = layers.MultiHeadAttention(2, 4)(x, x)
    return tf.keras.Model(
        x, layers.Dense(CLASSES)(layers.Flatten()(layers.LayerNormalization()(x + attended)))
    )


def frozen_first_layer() -> tf.keras.Model:
    model = stack((6,), layers.Dense(7, "tanh"), layers.Dense(6, "tanh"), layers.Dense(CLASSES))
    model.layers[0].trainable = False
    return model


ONE_PASS = {
    "mlp": lambda: stack((20,), layers.Dense(16, "relu"), layers.Dense(CLASSES)),
    "wide": lambda: stack((300,), layers.Dense(200, "relu"), layers.Dense(CLASSES)),
    "frozen": frozen_first_layer,
    "prelu": lambda: stack((9,), layers.Dense(8), layers.PReLU(), layers.Dense(CLASSES)),
    "dense_3d": lambda: series(layers.Dense(7, "tanh")),
    "dense_over_long_series": lambda: stack(
        (40, 2), layers.Dense(3, "tanh"), layers.Flatten(), layers.Dense(CLASSES)
    ),
    "layer_norm": lambda: series(layers.Dense(6), layers.LayerNormalization()),
    "layer_norm_of_image": lambda: image(layers.LayerNormalization(axis=[1, 2, 3])),
    "group_norm": lambda: image(layers.GroupNormalization(2)),
    "unit_norm": lambda: series(layers.Dense(6), layers.UnitNormalization()),
    "cnn": lambda: image(
        layers.Conv2D(8, 3, 2, "same", activation="relu"),
        layers.MaxPool2D(2, 1),
        layers.Conv2D(6, 2),
    ),
    "conv_of_many_channels": lambda: stack(
        (4, 4, 24), layers.Conv2D(32, 3, activation="relu"), layers.Flatten(), layers.Dense(CLASSES)
    ),
    "dilated": lambda: image(layers.Conv2D(6, 3, dilation_rate=2, activation="relu")),
    "grouped": lambda: image(GroupedConvolution()),
    "depthwise": lambda: image(
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", strides=2, activation="relu")
    ),
    "dilated_depthwise": lambda: image(
        layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", activation="relu")
    ),
    "separable": lambda: image(layers.SeparableConv2D(6, 3, activation="relu")),
    "separable_1d": lambda: series(layers.SeparableConv1D(6, 3, activation="relu")),
    "conv_1d": lambda: stack(
        (12, 4),
        layers.Conv1D(6, 3, dilation_rate=2, padding="causal", activation="relu"),
        layers.Conv1D(6, 3, strides=2),
        layers.GlobalAveragePooling1D(),
        layers.Dense(CLASSES),
    ),
    "transposed": lambda: image(layers.Conv2DTranspose(6, 3, strides=2, padding="same")),
    "time_distributed": lambda: stack(
        (3, 5, 3),
        layers.TimeDistributed(layers.Conv1D(4, 2)),
        layers.Flatten(),
        layers.Dense(CLASSES),
    ),
    "lstm_at_every_step": lambda: stack(
        (3, 4, 2),
        layers.TimeDistributed(layers.LSTM(3, unroll=True)),
        layers.Flatten(),
        layers.Dense(CLASSES),
    ),
    "embedding": lambda: text(layers.GlobalAveragePooling1D(), layers.Dense(CLASSES)),
    "masked_gru": lambda: text(layers.GRU(5, unroll=True), layers.Dense(CLASSES), mask_zero=True),
    "masked_pooling": lambda: text(
        layers.GlobalAveragePooling1D(), layers.Dense(CLASSES), mask_zero=True
    ),
    "nearest_enlarged": lambda: image(layers.Conv2D(3, 2), layers.UpSampling2D((2, 3))),
    "sorted": lambda: series(layers.Dense(6), SortedAndPooled()),
    "simple_rnn": lambda: series(layers.SimpleRNN(5, unroll=True, return_sequences=True)),
    "lstm": lambda: series(layers.Bidirectional(layers.LSTM(4, unroll=True))),
    "gru": lambda: series(layers.GRU(5, unroll=True, reset_after=False)),
    "attention": attention,
    "shared": shared,
    "tied": tied,
    "pieces": lambda: stack((6,), PiecesOfOneKernel(), layers.Dense(CLASSES)),
    "positions_of_shape": lambda: series(layers.Dense(6), PositionsOfShape()),
    "softmax_of_steps": lambda: series(
        layers.Dense(6, lambda x: tf.repeat(tf.nn.softmax(x, axis=1), 2, axis=1))
    ),
    "two_forms": lambda: stack((6,), OneKernelInTwoForms(), layers.Dense(CLASSES)),
}

LOOP_ONLY = {
    "mixes examples": lambda: stack((6,), layers.Dense(7), CentredBatch(), layers.Dense(CLASSES)),
    "overlap": lambda: stack((6,), Overlapping(), layers.Dense(CLASSES)),
    "computes with weights": lambda: stack((6,), NormalisedKernel(), layers.Dense(CLASSES)),
}


def built(make: Any) -> tf.keras.Model:
    """The model with weights that are nowhere zero."""
    tf.keras.utils.set_random_seed(1)
    model = make()
    draw = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * draw.normal(size=variable.shape).astype(np.float32))
    return model


def batch_for(model: tf.keras.Model, size: int = BATCH) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(2)
    shape = (size, *model.input_shape[1:])
    if model.inputs[0].dtype == tf.int32:
        x = draw.integers(0, CLASSES, shape).astype(np.int32)
    else:
        x = draw.normal(size=shape).astype(np.float32)
    return {"x": x, "y": draw.integers(0, CLASSES, size).astype(np.int32)}


def losses_of(model: tf.keras.Model) -> Any:
    def losses(batch, random):
        logits = model(batch["x"], training=True)
        return -tf.reduce_sum(tf.one_hot(batch["y"], CLASSES) * tf.nn.log_softmax(logits), axis=-1)

    return losses


def specs(batch: dict[str, np.ndarray]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec(a.shape, a.dtype) for name, a in batch.items()}


def clipped_sum(model, batch, weight, sensitivity, method, losses=None, scale=1.0) -> np.ndarray:
    """The flat sum, float32 [d], computed by a TensorFlow function."""

    def run(batch, weight, scale, sensitivity):
        return clipped_gradient_sum(
            losses or losses_of(model),
            batch,
            weight,
            None,
            variables=model.trainable_variables,
            scale=scale,
            sensitivity=sensitivity,
            op_gradients={},
            method=method,
        )

    parts = tf.function(run, autograph=False)(
        {name: tf.constant(a) for name, a in batch.items()},
        tf.constant(weight, tf.float32),
        tf.constant(scale, tf.float32),
        tf.constant(sensitivity, tf.float32),
    )
    return np.concatenate([p.numpy().reshape(-1) for p in parts])


def gradient_of_each(model, batch) -> np.ndarray:
    """float64 [B, d]: a GradientTape and Keras' own loss for every example."""
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rows = []
    for i in range(len(batch["y"])):
        with tf.GradientTape() as tape:
            value = loss(batch["y"][i : i + 1], model(batch["x"][i : i + 1], training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        rows.append(
            np.concatenate([tf.convert_to_tensor(g).numpy().reshape(-1) for g in gradients])
        )
    return np.array(rows, np.float64)


def expected_sum(gradients: np.ndarray, weight: np.ndarray, clip_norm: float) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1)
    return (weight * np.minimum(1.0, clip_norm / norms)) @ gradients
