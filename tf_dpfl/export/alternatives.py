"""What to use instead of layers and ops that no device can train."""

from __future__ import annotations

from typing import Any

_OF_LAYER = {
    "AveragePooling3D": "use AveragePooling2D in a TimeDistributed, or GlobalAveragePooling3D",
    "Conv3D": "use Conv2D in a TimeDistributed, or Conv2D with the depth as channels",
    "Conv3DTranspose": "use Conv2DTranspose in a TimeDistributed",
    "ConvLSTM1D": "use Conv1D in a TimeDistributed in front of an LSTM or GRU",
    "ConvLSTM2D": "use Conv2D in a TimeDistributed in front of an LSTM or GRU",
    "ConvLSTM3D": "use Conv2D in a TimeDistributed in front of an LSTM or GRU",
    "LocallyConnected1D": "use implementation=1",
    "LocallyConnected2D": "use implementation=1",
    "MaxPooling3D": "use MaxPooling2D in a TimeDistributed, or GlobalMaxPooling3D",
    "Resizing": 'use interpolation="nearest" or "bilinear"',
    "UpSampling2D": 'use interpolation="nearest" or "bilinear"',
}

_OF_OP = {
    "Cosh": "write it with tf.exp",
    "Cumprod": "of numbers > 0 write tf.exp(tf.cumsum(tf.math.log(x)))",
    "EagerPyFunc": "write it in TensorFlow's ops",
    "Erf": 'use "gelu" as a layer\'s activation, which is exported with an approximation of it',
    "Expm1": "write tf.exp(x) - 1.0",
    "If": "choose with tf.where",
    "MatrixBandPart": "multiply by a constant of zeros and ones",
    "Prod": "multiply the parts of tf.unstack",
    "PyFunc": "write it in TensorFlow's ops",
    "Roll": "write tf.concat of the two parts",
    "Sinh": "write it with tf.exp",
    "Softsign": "use it as a layer's activation, or write x / (1 + tf.abs(x))",
    "StatelessIf": "choose with tf.where",
    "StatelessWhile": "write the steps out, or use SimpleRNN, LSTM or GRU",
    "While": "write the steps out, or use SimpleRNN, LSTM or GRU",
}

_ANYTHING_ELSE = "use another layer"
_OR_A_RULE = f"{_ANYTHING_ELSE}, or add a rule to tf_dpfl/export/gradients"

_CHANNELS_FIRST = (
    'works with data_format="channels_first", which devices can not train; use '
    '"channels_last", behind a Permute where the data are the other way round'
)
# These look things up in tables of their own, or work with text.
_PREPROCESSING = (
    "CategoryEncoding",
    "HashedCrossing",
    "Hashing",
    "IntegerLookup",
    "StringLookup",
    "TextVectorization",
)
_BEFORE_STORING = (
    "prepares data in ways that no device can; make ids or numbers of them before the examples "
    "are stored, and give the model these"
)
# These slide windows; others with the setting only name an axis by it.
_WINDOWS = ("Conv", "DepthwiseConv", "MaxPooling", "AveragePooling", "SeparableConv")


def instead_of(layer: Any, op_type: str, *, has_builtin: bool = True) -> str:
    """What to use instead of `layer` (None where it is no layer's) or of the op in it.

    A gradient rule can help only where the op `has_builtin`.
    """
    of_layer = None if layer is None else _OF_LAYER.get(type(layer).__name__)
    return of_layer or _OF_OP.get(op_type, _OR_A_RULE if has_builtin else _ANYTHING_ELSE)


def fault_of_settings(layer: Any) -> str | None:
    """What is wrong with the settings of `layer`, and what to set instead."""
    if any(base.__name__ in _PREPROCESSING for base in type(layer).__mro__):
        return _BEFORE_STORING
    if getattr(layer, "data_format", None) == "channels_first" and any(
        base.__name__.startswith(_WINDOWS) for base in type(layer).__mro__
    ):
        return _CHANNELS_FIRST
    if type(layer).__name__ == "Conv1DTranspose" and set(layer.dilation_rate) != {1}:
        return "is a dilated transposed convolution of series; use dilation_rate=1"
    return None
