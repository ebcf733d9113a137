"""One small unmodified Keras model for every layer the exporter promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

L = tf.keras.layers
IMAGE = (6, 6, 4)
SERIES = (6, 4)
IDS = (5,)
CLASSES = 3


def stack(shape: tuple[int, ...], *parts: Any, dtype: str = "float32") -> tf.keras.Model:
    """A Sequential model that ends in logits."""
    end = [L.Flatten(), L.Dense(CLASSES)]
    return tf.keras.Sequential([L.InputLayer(shape, dtype=dtype), *parts, *end])


def functional(shape: tuple[int, ...], body: Callable[[Any], Any]) -> tf.keras.Model:
    """A functional model of one float input that ends in logits."""
    x = tf.keras.Input(shape)
    return tf.keras.Model(x, L.Dense(CLASSES)(L.Flatten()(body(x))))


def merges() -> tf.keras.Model:
    """All merging layers side by side."""
    kinds = [L.Add(), L.Multiply(), L.Average(), L.Maximum(), L.Minimum(), L.Subtract(), L.Dot(1)]
    return functional(
        (5,),
        lambda x: L.Concatenate()([kind([L.Dense(4)(x), L.Dense(4)(x)]) for kind in kinds]),
    )


def nested() -> tf.keras.Model:
    """A model in a model in a model, one of them called twice."""
    inner = tf.keras.Sequential([L.InputLayer((4,)), L.Dense(4, "tanh"), L.Dropout(0.0)])
    x = tf.keras.Input((4,))
    middle = tf.keras.Model(x, L.Add()([inner(x), inner(L.Dense(4)(x))]))
    return stack((4,), L.Dense(4), middle)


def frozen() -> tf.keras.Model:
    """A frozen part with batch normalisation between trainable layers."""
    base = tf.keras.Sequential(
        [L.InputLayer(IMAGE), L.Conv2D(5, 2), L.BatchNormalization(), L.ReLU()]
    )
    norm = base.layers[1]
    norm.moving_mean.assign([0.1, -0.2, 0.3, 0.0, 0.2])
    norm.moving_variance.assign([0.5, 2.0, 1.0, 0.7, 1.3])
    base.trainable = False
    return stack(IMAGE, L.Conv2D(4, 1), base, L.Conv2D(3, 2))


@tf.keras.utils.register_keras_serializable("tests")
class Untied(L.Layer):
    """Logits by the transpose of another layer's weights: weight tying."""

    def __init__(self, tied: Any, **keywords: Any):
        super().__init__(**keywords)
        self.tied = tied

    def call(self, x: Any) -> Any:
        """x times the transposed table."""
        return tf.matmul(x, self.tied.weights[0], transpose_b=True)


def tied() -> tf.keras.Model:
    """An embedding that is also the output's matrix."""
    ids = tf.keras.Input(IDS, dtype="int32")
    table = L.Embedding(7, 4)
    return tf.keras.Model(ids, Untied(table)(L.GlobalAveragePooling1D()(table(ids))))


@tf.keras.utils.register_keras_serializable("tests")
class Table(L.Layer):
    """A table that is looked up, and whose transpose gives logits: tied in one layer."""

    def build(self, shape: Any) -> None:
        """One row an id."""
        self.rows = self.add_weight(name="rows", shape=(CLASSES, 4))

    def call(self, x: Any, backwards: bool = False) -> Any:
        """Rows of ids, or products with all rows."""
        return tf.matmul(x, self.rows, transpose_b=True) if backwards else tf.gather(self.rows, x)


def tied_in_one_layer() -> tf.keras.Model:
    """What can be kept in a file: one layer called twice."""
    ids, table = tf.keras.Input(IDS, dtype="int32"), Table()
    hidden = L.GlobalAveragePooling1D()(L.Dense(4, "tanh")(table(ids)))
    return tf.keras.Model(ids, table(hidden, backwards=True))


@tf.keras.utils.register_keras_serializable("tests")
class Block(L.Layer):
    """A transformer's block as people write it: layers in lists, Dropout, gelu, a function."""

    def __init__(self, **keywords: Any):
        super().__init__(**keywords)
        self.attention = L.MultiHeadAttention(2, 2, dropout=0.1)
        self.dense = tf.keras.Sequential([L.Dense(8, "gelu"), L.Dense(4)])
        self.norms = [L.LayerNormalization(), L.LayerNormalization()]
        self.drop = L.Dropout(0.1)

    @tf.function
    def call(self, x: Any, training: bool = False) -> Any:
        """Attention and dense layers, each added to what it gets."""
        x = self.norms[0](x + self.attention(x, x, training=training))
        return self.norms[1](x + self.drop(self.dense(x), training=training))


def masked_attention() -> tf.keras.Model:
    """Attention whose padding comes from an embedding's mask."""
    ids = tf.keras.Input(IDS, dtype="int32")
    rows = L.Embedding(7, 4, mask_zero=True)(ids)
    attended = L.MultiHeadAttention(2, 3)(rows, rows)
    return tf.keras.Model(ids, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(attended)))


def two_inputs() -> tf.keras.Model:
    """Ids and numbers together."""
    ids, numbers = tf.keras.Input(IDS, dtype="int32"), tf.keras.Input((3,))
    words = L.GlobalMaxPool1D()(L.Embedding(7, 4)(ids))
    return tf.keras.Model([ids, numbers], L.Dense(CLASSES)(L.Concatenate()([words, numbers])))


def attention(**keywords: Any) -> Callable[[], tf.keras.Model]:
    """Self-attention over a series."""
    return lambda: functional(SERIES, lambda x: L.MultiHeadAttention(2, 3)(x, x, **keywords))


LAYERS: dict[str, Callable[[], tf.keras.Model]] = {
    "dense on series": lambda: stack(SERIES, L.Dense(5, "tanh")),
    "einsum with an ellipsis": lambda: stack(
        SERIES, L.EinsumDense("...x,xy->...y", output_shape=5, bias_axes="y")
    ),
    "time distributed": lambda: stack(SERIES, L.TimeDistributed(L.Dense(5, "gelu"))),
    "conv1d strided": lambda: stack(SERIES, L.Conv1D(5, 3, strides=2, activation="tanh")),
    "conv1d causal": lambda: stack(SERIES, L.Conv1D(5, 3, padding="causal", dilation_rate=2)),
    "conv1d groups": lambda: stack(SERIES, L.Conv1D(6, 3, groups=2, activation="softsign")),
    "conv2d of three rows": lambda: stack(
        (28, 26, 2),
        L.Conv2D(8, 3, padding="same", activation="tanh"),
        L.Conv2D(9, 3, padding="same", activation="tanh"),
        L.Conv2D(8, (3, 1), activation="tanh"),
        L.AveragePooling2D(5),
    ),
    "conv2d groups": lambda: stack(IMAGE, L.Conv2D(6, 3, groups=2, padding="same", strides=2)),
    "conv2d dilated": lambda: stack(IMAGE, L.Conv2D(6, 2, dilation_rate=2, padding="same")),
    "conv2d transpose": lambda: stack(IMAGE, L.Conv2DTranspose(3, 3, strides=2, padding="same")),
    "conv2d transpose valid": lambda: stack(IMAGE, L.Conv2D(3, 1), L.Conv2DTranspose(3, 3, 2)),
    "conv1d transpose": lambda: stack(SERIES, L.Conv1DTranspose(3, 3, strides=2)),
    "depthwise": lambda: stack(IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2)),
    "depthwise dilated": lambda: stack(IMAGE, L.DepthwiseConv2D(2, dilation_rate=2)),
    "depthwise1d": lambda: stack(SERIES, L.DepthwiseConv1D(3)),
    "separable1d": lambda: stack(SERIES, L.SeparableConv1D(5, 3)),
    "separable2d": lambda: stack(IMAGE, L.SeparableConv2D(5, 3, strides=2, padding="same")),
    "max pool1d": lambda: stack(SERIES, L.Conv1D(3, 2), L.MaxPool1D(2)),
    "average pool1d": lambda: stack(SERIES, L.Conv1D(3, 2), L.AveragePooling1D(2, padding="same")),
    "max pool2d": lambda: stack(IMAGE, L.Conv2D(3, 2), L.MaxPool2D(3, 2, "same")),
    "average pool2d": lambda: stack(IMAGE, L.Conv2D(3, 2), L.AveragePooling2D(2, 1)),
    "global max1d": lambda: stack(SERIES, L.Conv1D(3, 2), L.GlobalMaxPool1D()),
    "global average1d": lambda: stack(SERIES, L.Conv1D(3, 2), L.GlobalAveragePooling1D()),
    "global max2d": lambda: stack(IMAGE, L.Conv2D(3, 2), L.GlobalMaxPool2D(keepdims=True)),
    "global average2d": lambda: stack(IMAGE, L.Conv2D(3, 2), L.GlobalAveragePooling2D()),
    "reshape permute": lambda: stack(SERIES, L.Dense(4), L.Reshape((4, 6)), L.Permute((2, 1))),
    "repeat vector": lambda: stack((5,), L.Dense(4), L.RepeatVector(3)),
    "rescaling": lambda: stack(SERIES, L.Rescaling(1 / 9.0, offset=0.1), L.Dense(3)),
    "padding cropping2d": lambda: stack(
        IMAGE, L.Conv2D(3, 2), L.ZeroPadding2D(((1, 0), (2, 1))), L.Cropping2D(1)
    ),
    "padding cropping1d": lambda: stack(
        SERIES, L.Conv1D(3, 2), L.ZeroPadding1D(2), L.Cropping1D(1)
    ),
    "upsampling nearest": lambda: stack(IMAGE, L.Conv2D(3, 2), L.UpSampling2D(2)),
    "upsampling bilinear": lambda: stack(
        IMAGE, L.Conv2D(3, 2), L.UpSampling2D((2, 3), interpolation="bilinear")
    ),
    "upsampling1d": lambda: stack(SERIES, L.Conv1D(3, 2), L.UpSampling1D(2)),
    "dropout": lambda: stack(SERIES, L.Dense(4), L.Dropout(0.3)),
    "spatial dropout": lambda: stack(IMAGE, L.Conv2D(4, 2), L.SpatialDropout2D(0.3)),
    "alpha dropout": lambda: stack(SERIES, L.Dense(4, "selu"), L.AlphaDropout(0.3)),
    "gaussian dropout": lambda: stack(SERIES, L.Dense(4), L.GaussianDropout(0.3)),
    "gaussian noise": lambda: stack(SERIES, L.Dense(4), L.GaussianNoise(0.3)),
    "layer normalization": lambda: stack(SERIES, L.Dense(4), L.LayerNormalization()),
    "layer normalization of axes": lambda: stack(
        IMAGE, L.Conv2D(4, 2), L.LayerNormalization(axis=[1, 2, 3])
    ),
    "group normalization": lambda: stack(IMAGE, L.Conv2D(4, 2), L.GroupNormalization(2)),
    "instance normalization": lambda: stack(SERIES, L.Dense(4), L.GroupNormalization(-1)),
    "unit normalization": lambda: stack(SERIES, L.Dense(4), L.UnitNormalization()),
    "embedding": lambda: stack(IDS, L.Embedding(7, 4), dtype="int32"),
    "embedding averaged": lambda: stack(
        IDS, L.Embedding(7, 4), L.GlobalAveragePooling1D(), L.Dense(4, "tanh"), dtype="int32"
    ),
    "embedding masked": lambda: stack(
        IDS, L.Embedding(7, 4, mask_zero=True), L.GlobalAveragePooling1D(), dtype="int32"
    ),
    "embedding of float ids": lambda: tf.keras.Sequential(
        [L.Embedding(7, 4, input_length=5), L.Flatten(), L.Dense(CLASSES)]
    ),
    "relu without bias": lambda: stack(
        SERIES, L.Dense(4, "relu", use_bias=False), L.Dense(4, tf.nn.relu6, use_bias=False)
    ),
    "model at every step": lambda: stack(
        (3, 6, 2),
        L.TimeDistributed(
            tf.keras.Sequential(
                [L.InputLayer((6, 2)), L.Conv1D(3, 2, activation="gelu"), L.Dropout(0.3)]
            )
        ),
    ),
    "block of one's own": lambda: stack(SERIES, Block()),
    "tied in one layer": tied_in_one_layer,
    "lstm with dropout": lambda: stack(SERIES, L.LSTM(3, dropout=0.2, recurrent_dropout=0.2)),
    "attention with dropout": lambda: functional(
        SERIES, lambda x: L.Attention(dropout=0.2)([L.Dense(4)(x), x])
    ),
    "attention over axes": lambda: functional(
        IMAGE, lambda x: L.MultiHeadAttention(2, 3, attention_axes=(1, 2))(x, x)
    ),
    "softmax over axes": lambda: stack(SERIES, L.Dense(4), L.Softmax(axis=[1, 2])),
    "slices and choices": lambda: functional(
        SERIES,
        lambda x: (
            tf.where(x[:, ::2] > 0.0, tf.math.log(1.0 + x[:, ::-2] ** 2), 0.1)
            + L.Dense(4)(x)[:, tf.newaxis, 1:4][:, 0]
        ),
    ),
    "depth to space": lambda: functional(
        IMAGE, lambda x: tf.nn.depth_to_space(L.Conv2D(8, 2, activation="swish")(x), 2)
    ),
    "simple rnn": lambda: stack(SERIES, L.SimpleRNN(4)),
    "lstm": lambda: stack(SERIES, L.LSTM(4, return_sequences=True)),
    "gru": lambda: stack(SERIES, L.GRU(4, go_backwards=True)),
    "gru of old form": lambda: stack(SERIES, L.GRU(4, reset_after=False)),
    "stacked cells": lambda: stack(SERIES, L.RNN([L.LSTMCell(3), L.GRUCell(4)])),
    "bidirectional masked": lambda: stack(
        IDS, L.Embedding(7, 4, mask_zero=True), L.Bidirectional(L.LSTM(3)), dtype="int32"
    ),
    "bidirectional sequence masked": lambda: stack(
        IDS,
        L.Embedding(7, 4, mask_zero=True),
        L.Bidirectional(L.GRU(2, return_sequences=True)),
        dtype="int32",
    ),
    "bidirectional sum": lambda: stack(
        SERIES, L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum")
    ),
    "multi-head attention": attention(),
    "causal attention": attention(use_causal_mask=True),
    "masked attention": masked_attention,
    "attention": lambda: functional(
        SERIES, lambda x: L.Attention(use_scale=True)([L.Dense(4)(x), x])
    ),
    "additive attention": lambda: functional(
        SERIES, lambda x: L.AdditiveAttention()([L.Dense(4)(x), x])
    ),
    "merges": merges,
    "prelu": lambda: stack(IMAGE, L.Conv2D(3, 2), L.PReLU(shared_axes=[1, 2])),
    "relu with settings": lambda: stack(
        SERIES, L.Dense(4), L.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.2)
    ),
    "softmax layer": lambda: stack(SERIES, L.Dense(4), L.Softmax(axis=1)),
    "nested": nested,
    "frozen": frozen,
    "tied": tied,
    "two inputs": two_inputs,
}

ACTIVATIONS: dict[str, Any] = {
    **{
        name: name
        for name in (
            "relu elu selu tanh sigmoid hard_sigmoid softplus softsign swish gelu mish softmax "
            "exponential"
        ).split()
    },
    "relu6": tf.nn.relu6,
    "leaky_relu": tf.nn.leaky_relu,
    "log_softmax": tf.nn.log_softmax,
    "gelu, tanh form": lambda x: tf.keras.activations.gelu(x, approximate=True),
}

# Converted in every run of the tests; the others are slow ones.
FAST = (
    "einsum with an ellipsis",
    "conv1d causal",
    "conv2d of three rows",
    "conv2d groups",
    "conv2d transpose",
    "depthwise dilated",
    "dropout",
    "layer normalization",
    "group normalization",
    "lstm",
    "embedding averaged",
    "bidirectional masked",
    "masked attention",
    "merges",
    "nested",
    "frozen",
    "tied",
    "two inputs",
    "relu without bias",
    "block of one's own",
    "tied in one layer",
)
