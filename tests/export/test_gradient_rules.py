"""Every gradient rule against TensorFlow's own gradient of the same op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.export.gradients.rules import UnsupportedOpError

IMAGE = (3, 7, 6, 4)
RNG_SEED = 5


def _values(*shape: int) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).normal(size=shape).astype(np.float32)


def _gradients(
    function: Callable[..., Any], inputs: list[np.ndarray], *, rules: dict[str, str]
) -> tuple[list[np.ndarray], set[str]]:
    """Gradients of a fixed random projection of `function`, and the ops met."""
    with tf.Graph().as_default() as graph:
        tensors = [tf.compat.v1.placeholder(tf.float32, a.shape) for a in inputs]
        with graph.gradient_override_map(rules):
            result = function(*tensors)
            forward = {op.type for op in graph.get_operations()}
            projection = _values(*result.shape)
            loss = tf.reduce_sum(tf.sin(result) * projection)
        grads = tf.gradients(loss, tensors)
        with tf.compat.v1.Session(graph=graph) as session:
            return session.run(grads, dict(zip(tensors, inputs))), forward


def _conv(strides: int, padding: str, dilation: int = 1) -> Callable[..., Any]:
    return lambda x, k: tf.nn.conv2d(x, k, strides, padding, dilations=dilation)


def _depthwise(strides: int, padding: str, dilation: int = 1) -> Callable[..., Any]:
    return lambda x, k: tf.nn.depthwise_conv2d(
        x, k, [1, strides, strides, 1], padding, dilations=[dilation, dilation]
    )


ONE_INPUT: dict[str, Callable[..., Any]] = {
    "Relu": tf.nn.relu,
    "Relu6": lambda x: tf.nn.relu6(4 * x),
    "LeakyRelu": lambda x: tf.nn.leaky_relu(x, 0.3),
    "Elu": tf.nn.elu,
    "Selu": tf.nn.selu,
    "Tanh": tf.tanh,
    "Sigmoid": tf.sigmoid,
    "Softplus": tf.math.softplus,
    "Softmax": tf.nn.softmax,
    "LogSoftmax": tf.nn.log_softmax,
    "Sqrt": lambda x: tf.sqrt(x * x + 1),
    "Rsqrt": lambda x: tf.math.rsqrt(x * x + 1),
    "Pow": lambda x: tf.pow(x, 3.0),
    "Sum": lambda x: tf.reduce_sum(x, [1, -1]),
    "Mean": lambda x: tf.reduce_mean(x, [0, 2], keepdims=True),
    "Max": lambda x: tf.reduce_max(x, [1, 2]),
    "Reshape": lambda x: tf.reshape(x, [-1, 4]),
    "Squeeze": lambda x: tf.squeeze(x[:, :1], 1),
    "ExpandDims": lambda x: tf.expand_dims(x, 2),
    "Transpose": lambda x: tf.transpose(x, [3, 0, 2, 1]),
    "Pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]]),
    "PadV2": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]], constant_values=2.0),
    "StridedSlice": lambda x: x[..., 1:-2, 1],
    "MaxPool": lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
    "AvgPool": lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID"),
}
TWO_INPUTS: dict[str, Callable[..., Any]] = {
    "Add": lambda x, y: tf.raw_ops.Add(x=x, y=y),
    "AddV2": tf.add,
    "Sub": tf.subtract,
    "Mul": tf.multiply,
    "RealDiv": lambda x, y: x / (tf.square(y) + 1),
    "SquaredDifference": tf.math.squared_difference,
    "Maximum": tf.maximum,
    "Minimum": tf.minimum,
    "SelectV2": lambda x, y: tf.where(x > y + 0.1, x, y),
    "ConcatV2": lambda x, y: tf.concat([x, tf.broadcast_to(y, [3, 1, 6, 4]), x], 1),
}
WITH_WEIGHTS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "BiasAdd": (tf.nn.bias_add, (4,)),
    "Conv2D": (_conv(1, "SAME"), (3, 2, 4, 5)),
    "DepthwiseConv2dNative": (_depthwise(1, "SAME"), (3, 3, 4, 2)),
}


def _check(function: Callable[..., Any], inputs: list[np.ndarray], op_type: str) -> None:
    rules = dict(op_gradients())
    ours, forward = _gradients(function, inputs, rules=rules)
    native, _ = _gradients(function, inputs, rules={})
    assert op_type in forward
    for mine, theirs in zip(ours, native):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        assert np.abs(theirs).max() > 1e-3


def test_every_rule_has_a_case() -> None:
    assert {*ONE_INPUT, *TWO_INPUTS, *WITH_WEIGHTS} == set(op_gradients())


@pytest.mark.parametrize("op_type", ONE_INPUT)
def test_rule_of_one_input_is_tensorflows_gradient(op_type: str) -> None:
    _check(lambda x: ONE_INPUT[op_type](1.0 * x), [_values(*IMAGE)], op_type)


@pytest.mark.parametrize("shape", [IMAGE, (1, 4), (7, 1, 1), (1,)], ids=str)
@pytest.mark.parametrize("op_type", sorted(set(TWO_INPUTS) - {"ConcatV2"}))
def test_rule_of_two_inputs_sums_over_broadcast_axes(op_type: str, shape: tuple[int, ...]) -> None:
    inputs = [_values(*IMAGE), _values(*shape)[..., ::-1].copy()]
    _check(TWO_INPUTS[op_type], inputs, op_type)
    if op_type != "SelectV2":
        _check(lambda x, y: TWO_INPUTS[op_type](y, x), inputs, op_type)


def test_rule_of_concat_splits_the_gradient() -> None:
    _check(TWO_INPUTS["ConcatV2"], [_values(*IMAGE), _values(3, 1, 6, 4)], "ConcatV2")


@pytest.mark.parametrize("op_type", WITH_WEIGHTS)
def test_rule_with_weights_is_tensorflows_gradient(op_type: str) -> None:
    function, shape = WITH_WEIGHTS[op_type]
    _check(function, [_values(*IMAGE), _values(*shape)], op_type)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (2, 3)], ids=str)
def test_convolution_rules_at_every_stride_padding_and_dilation(
    kernel: tuple[int, int], strides: int, dilation: int, padding: str
) -> None:
    image = _values(*IMAGE)
    convolution = _conv(strides, padding, dilation)
    _check(convolution, [image, _values(*kernel, 4, 5)], "Conv2D")
    depthwise = _depthwise(strides, padding, dilation)
    for multiplier in (1, 3):
        _check(depthwise, [image, _values(*kernel, 4, multiplier)], "DepthwiseConv2dNative")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("pool", [tf.nn.max_pool2d, tf.nn.avg_pool2d])
def test_pooling_rules_at_every_size_stride_and_padding(
    pool: Callable[..., Any], size: int, strides: int, padding: str
) -> None:
    op_type = "MaxPool" if pool is tf.nn.max_pool2d else "AvgPool"
    _check(lambda x: pool(x, size, strides, padding), [_values(*IMAGE)], op_type)


@pytest.mark.parametrize("op_type", ["MaxPool", "Max"])
def test_equal_values_share_a_maximum_as_in_tensorflow(op_type: str) -> None:
    ties = np.round(_values(*IMAGE))  # many equal neighbours
    _check(ONE_INPUT[op_type], [ties], op_type)


def test_slices_with_ellipsis_and_single_indices() -> None:
    for cut in (
        lambda x: x[1:, 2:5, :, -1],
        lambda x: x[:, 0],
        lambda x: x[..., -1],
        lambda x: x[:, 1:-1, 2:, :],
    ):
        _check(cut, [_values(*IMAGE)], "StridedSlice")


@pytest.mark.parametrize(
    "function",
    [
        lambda x, k: x[:, ::2],
        lambda x, k: x[:, tf.newaxis],
        lambda x, k: tf.pow(x, 1.5),
        lambda x, k: tf.nn.conv2d(x, k[:, :, :2], 1, "SAME"),
        lambda x, k: tf.nn.conv2d(x, k, 1, [[0, 0], [1, 1], [1, 1], [0, 0]]),
    ],
    ids=["step", "new axis", "fractional power", "grouped", "explicit padding"],
)
def test_what_a_rule_does_not_cover_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOpError, match=r"no gradient rule|groups=1"):
        _gradients(function, [_values(*IMAGE), _values(2, 2, 4, 4)], rules=dict(op_gradients()))
