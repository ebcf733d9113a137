"""Gradients of activation functions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import as_float

# Klambauer et al. 2017 (1706.02515), equation 14; the constants of tf.nn.selu.
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


@gradient_of("Relu")
def _relu(op: Any, grad: Any) -> Any:
    return grad * as_float(op.outputs[0] > 0.0)


@gradient_of("Relu6")
def _relu6(op: Any, grad: Any) -> Any:
    result = op.outputs[0]
    return grad * as_float(result > 0.0) * as_float(result < 6.0)


@gradient_of("LeakyRelu")
def _leaky_relu(op: Any, grad: Any) -> Any:
    alpha = op.get_attr("alpha")
    return grad * (alpha + (1.0 - alpha) * as_float(op.inputs[0] > 0.0))


@gradient_of("Elu")
def _elu(op: Any, grad: Any) -> Any:
    # exp(x) = result + 1 where x < 0, and min(result, 0) = 0 elsewhere.
    return grad * (1.0 + tf.minimum(op.outputs[0], 0.0))


@gradient_of("Selu")
def _selu(op: Any, grad: Any) -> Any:
    result = op.outputs[0]
    positive = as_float(result >= 0.0)
    negative_slope = result + _SELU_SCALE * _SELU_ALPHA
    return grad * (_SELU_SCALE * positive + (1.0 - positive) * negative_slope)


@gradient_of("Tanh")
def _tanh(op: Any, grad: Any) -> Any:
    result = op.outputs[0]
    return grad - grad * (result * result)


@gradient_of("Sigmoid")
def _sigmoid(op: Any, grad: Any) -> Any:
    result = op.outputs[0]
    return grad * result * (1.0 - result)


@gradient_of("Softplus")
def _softplus(op: Any, grad: Any) -> Any:
    return grad * tf.sigmoid(op.inputs[0])


@gradient_of("Softmax")
def _softmax(op: Any, grad: Any) -> Any:
    result = op.outputs[0]
    return result * (grad - tf.reduce_sum(grad * result, axis=-1, keepdims=True))


@gradient_of("LogSoftmax")
def _log_softmax(op: Any, grad: Any) -> Any:
    return grad - tf.exp(op.outputs[0]) * tf.reduce_sum(grad, axis=-1, keepdims=True)
