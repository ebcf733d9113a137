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


def _transposed(strides: int, padding: str) -> Callable[..., Any]:
    def function(x: Any, k: Any) -> Any:
        height, width = (
            (n - 1) * strides + (size if padding == "VALID" else 1)
            for n, size in zip(x.shape[1:3], k.shape[:2])
        )
        return tf.nn.conv2d_transpose(x, k, [3, height, width, k.shape[2]], strides, padding)

    return function


def _normalised(*, training: bool, layout: str = "NHWC") -> Callable[..., Any]:
    def function(x: Any, scale: Any) -> Any:
        moments = {} if training else {"mean": 0.1 * scale, "variance": 1.0 + scale * scale}
        return tf.compat.v1.nn.fused_batch_norm(
            x,
            scale,
            tf.sin(scale),
            epsilon=0.01,
            is_training=training,
            data_format=layout,
            **moments,
        )[0]

    return function


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
    "Pow": lambda x: tf.pow(x, 3.0) + tf.pow(tf.abs(x), 1.5) + tf.pow(1 + x * x, tf.sin(x)),
    "Log": lambda x: tf.math.log(1 + x * x),
    "Log1p": lambda x: tf.math.log1p(x * x),
    "Reciprocal": lambda x: tf.math.reciprocal(2.0 + x * x),
    "Sin": tf.sin,
    "Cos": tf.cos,
    "Ceil": lambda x: x * tf.math.ceil(x),
    "Floor": lambda x: x * tf.floor(x),
    "Round": lambda x: x * tf.round(3 * x),
    "OnesLike": lambda x: x * tf.raw_ops.OnesLike(x=x),
    "ZerosLike": lambda x: x + tf.raw_ops.ZerosLike(x=x),
    "AddN": lambda x: tf.add_n([x, tf.sin(x), x]),
    "Select": lambda x: tf.raw_ops.Select(condition=x > 0.3, x=x, y=tf.sin(x)),
    "TopKV2": lambda x: tf.math.top_k(x, 3).values,
    "BroadcastTo": lambda x: tf.raw_ops.BroadcastTo(input=x[:, :, :1], shape=[3, 7, 6, 4]),
    "Cumsum": lambda x: tf.cumsum(x, 1) + tf.cumsum(x, -1, exclusive=True, reverse=True),
    "DepthToSpace": lambda x: tf.nn.depth_to_space(x, 2),
    "SpaceToDepth": lambda x: tf.nn.space_to_depth(x[:, 1:], 3),
    "MirrorPad": lambda x: tf.pad(
        tf.pad(x, [[0, 0], [3, 2], [0, 1], [0, 0]], "REFLECT"),
        [[1, 2], [0, 0], [4, 0], [0, 0]],
        "SYMMETRIC",
    ),
    "Sum": lambda x: tf.reduce_sum(x, [1, -1]),
    "Mean": lambda x: tf.reduce_mean(x, [0, 2], keepdims=True),
    "Max": lambda x: tf.reduce_max(x, [1, 2]),
    "Min": lambda x: tf.reduce_min(x, [1, 2]),
    "EnsureShape": lambda x: tf.ensure_shape(tf.sin(x), [3, None, 6, 4]),
    "Reshape": lambda x: tf.reshape(x, [-1, 4]),
    "Squeeze": lambda x: tf.squeeze(x[:, :1], 1),
    "ExpandDims": lambda x: tf.expand_dims(x, 2),
    "Transpose": lambda x: tf.transpose(x, [3, 0, 2, 1]),
    "Pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]]),
    "PadV2": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]], constant_values=2.0),
    "StridedSlice": lambda x: x[..., 1:-2, 1],
    "Slice": lambda x: tf.slice(x, [1, 0, 2, 1], [2, 7, 3, -1]),
    "ReverseV2": lambda x: tf.reverse(x, [1, 2]),
    "Tile": lambda x: tf.tile(x, [1, 3, 1, 2]),
    "Pack": lambda x: tf.stack([x, tf.sin(x), x], axis=2),
    "Unpack": lambda x: tf.unstack(x, axis=2)[1] * tf.unstack(x, axis=2)[3],
    "Split": lambda x: tf.multiply(*tf.split(x, 2, axis=3)),
    "SplitV": lambda x: tf.reduce_sum(tf.split(x, [2, 4, 1], axis=1)[1] ** 2.0, 1),
    "GatherV2": lambda x: tf.gather(x, [2, 0, 2, 2]),
    "Sign": lambda x: tf.sign(x) * x,
    "ResizeNearestNeighbor": lambda x: tf.image.resize(x, [14, 18], "nearest"),
    "ResizeBilinear": lambda x: tf.image.resize(x, [21, 12], "bilinear"),
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
    "FloorMod": lambda x, y: tf.math.floormod(x, 1 + y * y),
    "DivNoNan": lambda x, y: tf.math.divide_no_nan(x, tf.nn.relu(y) + tf.square(y)),
    "ConcatV2": lambda x, y: tf.concat([x, tf.broadcast_to(y, [3, 1, 6, 4]), x], 1),
}
WITH_WEIGHTS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "BiasAdd": (tf.nn.bias_add, (4,)),
    "Conv2D": (_conv(1, "SAME"), (3, 2, 4, 5)),
    "DepthwiseConv2dNative": (_depthwise(1, "SAME"), (3, 3, 4, 2)),
    "Conv2DBackpropInput": (_transposed(1, "SAME"), (3, 2, 5, 4)),
    "BatchMatMulV2": (tf.matmul, (7, 4, 2)),
    "Einsum": (lambda x, k: tf.einsum("abcd,def->abcef", x, k), (4, 2, 3)),
    "FusedBatchNormV3": (_normalised(training=True), (4,)),
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
    assert {*ONE_INPUT, *TWO_INPUTS, *WITH_WEIGHTS, "ResourceGather"} == set(op_gradients())


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
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (2, 3)], ids=str)
def test_transposed_convolution_at_every_stride_and_padding(
    kernel: tuple[int, int], strides: int, padding: str
) -> None:
    inputs = [_values(*IMAGE), _values(*kernel, 5, 4)]
    _check(_transposed(strides, padding), inputs, "Conv2DBackpropInput")


@pytest.mark.parametrize("turned_right", [False, True])
@pytest.mark.parametrize("turned_left", [False, True])
@pytest.mark.parametrize("batches", [((3, 2), (3, 2)), ((3, 2), (2,)), ((1, 2), (3, 1))], ids=str)
def test_products_of_matrices_turned_and_broadcast(
    batches: Any, turned_left: bool, turned_right: bool
) -> None:
    left = _values(*batches[0], *((4, 5) if turned_left else (5, 4)))
    right = _values(*batches[1], *((3, 4) if turned_right else (4, 3)))
    _check(
        lambda x, y: tf.matmul(x, y, transpose_a=turned_left, transpose_b=turned_right),
        [left, right],
        "BatchMatMulV2",
    )


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("abc,cde->abde", (3, 5, 4), (4, 2, 3)),
        ("aecd,abcd->acbe", (2, 5, 3, 4), (2, 6, 3, 4)),
        ("acbe,aecd->abcd", (2, 3, 6, 5), (2, 5, 3, 4)),
        ("abcd,cde->abe", (2, 5, 3, 4), (3, 4, 6)),
        ("ab,cb->ca", (3, 4), (5, 4)),
    ],
)
def test_the_einsums_of_attention(equation: str, left: Any, right: Any) -> None:
    inputs = [_values(*left), _values(*right)]
    _check(lambda x, y: tf.einsum(equation, x, y), inputs, "Einsum")


@pytest.mark.parametrize(("training", "layout"), [(True, "NCHW"), (False, "NHWC")])
def test_normalisation_of_rows_and_with_kept_moments(training: bool, layout: str) -> None:
    # On a CPU TensorFlow runs the op's gradient in NHWC alone: turn there and back.
    turn = (lambda x: tf.transpose(x, [0, 3, 1, 2])) if layout == "NCHW" else (lambda x: x)
    rules = dict(op_gradients())
    inputs = [_values(*IMAGE), _values(4)]
    function = _normalised(training=training, layout=layout)
    ours, forward = _gradients(
        lambda x, k: tf.reduce_sum(tf.sin(function(turn(x), k)), -1), inputs, rules=rules
    )
    oracle = _normalised_by_hand(training=training)
    expected, _ = _gradients(
        lambda x, k: tf.reduce_sum(tf.sin(turn(oracle(x, k))), -1), inputs, rules={}
    )
    assert "FusedBatchNormV3" in forward
    for mine, theirs in zip(ours, expected):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def _normalised_by_hand(*, training: bool) -> Callable[..., Any]:
    def function(x: Any, scale: Any) -> Any:
        if training:
            mean, variance = tf.nn.moments(x, [0, 1, 2])
        else:
            mean, variance = tf.stop_gradient(0.1 * scale), tf.stop_gradient(1.0 + scale * scale)
        return (x - mean) / tf.sqrt(variance + 0.01) * scale + tf.sin(scale)

    return function


def test_rows_of_a_variable_looked_up_twice_add_up() -> None:
    def gradient(rules: dict[str, str]) -> np.ndarray:
        with tf.Graph().as_default() as graph, graph.gradient_override_map(rules):
            table = tf.compat.v1.get_variable("table", [5, 3], use_resource=True)
            rows = tf.nn.embedding_lookup(table, [[1, 4], [1, 0]])
            loss = tf.reduce_sum(tf.sin(rows) * _values(2, 2, 3))
            (found,) = tf.gradients(loss, [table.handle])
            with tf.compat.v1.Session(graph=graph) as session:
                session.run(table.assign(_values(5, 3)))
                return session.run(tf.convert_to_tensor(found))

    ours, native = gradient(dict(op_gradients())), gradient({})
    np.testing.assert_allclose(ours, native, rtol=1e-6, atol=1e-7)
    assert not native[3].any() and native[1].any()


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("pool", [tf.nn.max_pool2d, tf.nn.avg_pool2d])
def test_pooling_rules_at_every_size_stride_and_padding(
    pool: Callable[..., Any], size: int, strides: int, padding: str
) -> None:
    op_type = "MaxPool" if pool is tf.nn.max_pool2d else "AvgPool"
    _check(lambda x: pool(x, size, strides, padding), [_values(*IMAGE)], op_type)


@pytest.mark.parametrize(("axis", "ids"), [(1, [6, 0, 6]), (-1, [[1, 0], [1, 3]]), (2, 3)], ids=str)
def test_entries_gathered_along_an_axis_add_up(axis: int, ids: Any) -> None:
    _check(lambda x: tf.gather(1.0 * x, ids, axis=axis), [_values(*IMAGE)], "GatherV2")


@pytest.mark.parametrize("op_type", ["MaxPool", "Max", "Min"])
def test_equal_values_share_a_maximum_as_in_tensorflow(op_type: str) -> None:
    ties = np.round(_values(*IMAGE))  # many equal neighbours
    _check(ONE_INPUT[op_type], [ties], op_type)


def test_slices_with_ellipsis_steps_new_axes_and_single_indices() -> None:
    for cut in (
        lambda x: x[1:, 2:5, :, -1],
        lambda x: x[:, 0],
        lambda x: x[..., -1],
        lambda x: x[:, 1:-1, 2:, :],
        lambda x: x[:, ::2, 4::-2],
        lambda x: x[:, 1:6:3, ::-1, ::5],
        lambda x: x[:, tf.newaxis, 2, ..., tf.newaxis],
        lambda x: x[::-1, 5:1:-3],
    ):
        _check(cut, [_values(*IMAGE)], "StridedSlice")


@pytest.mark.parametrize(
    "function",
    [
        lambda x, k: tf.raw_ops.Select(condition=[True, False, True], x=x, y=2 * x),
        lambda x, k: tf.nn.conv2d(x, k[:, :, :2], 1, "SAME"),
        lambda x, k: tf.nn.conv2d(x, k, 1, [[0, 0], [1, 1], [1, 1], [0, 0]]),
        lambda x, k: tf.gather(x, [[0, 1]] * 3, axis=1, batch_dims=1),
        lambda x, k: tf.einsum("...a,ab->...b", x, k[0, 0]),
        lambda x, k: tf.einsum("abcd,de->ab", x, k[0, 0]),
    ],
    ids=[
        "choice of rows",
        "grouped",
        "explicit padding",
        "gather with batch_dims",
        "einsum with an ellipsis",
        "einsum that sums an operand",
    ],
)
def test_what_a_rule_does_not_cover_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOpError, match=r"no gradient rule|groups=1"):
        _gradients(function, [_values(*IMAGE), _values(2, 2, 4, 4)], rules=dict(op_gradients()))
