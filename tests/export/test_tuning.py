"""Rewritten files compute what they computed, in faster ops, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import build, plan_of

from tf_dpfl.client_work.convolutions import Axis
from tf_dpfl.export import convert as conversion
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.gradients.windows import Blocks
from tf_dpfl.export.operators import operators_of
from tf_dpfl.export.tuning import tune
from tf_dpfl.export.tuning.file import pack, subgraphs_of, unpack
from tf_dpfl.protocol.interpreter import load_interpreter

R = tf.raw_ops
BATCH_SIZE = 6


def converted(function: Callable[..., Any], *specs: Any) -> bytes:
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    return bytes(converter.convert())


def spec(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32)


def run(content: bytes, values: list[np.ndarray]) -> np.ndarray:
    interpreter = load_interpreter(content)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), values):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def names(content: bytes) -> set[str]:
    return {op.name for op in operators_of(content)}


def convolution(stride: int, padding: str, dilation: int = 1, size: int = 3) -> Any:
    def run(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        result = tf.nn.conv2d(x, kernel, stride, padding, dilations=dilation)
        return tf.nn.bias_add(result, bias)

    return run, (spec(2, 9, 8, 3), spec(size, size, 3, 5), spec(5))


# name: function, inputs, the op that must be gone (or, with +, new).
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "sub broadcast right": (lambda a, b: a - b, (spec(4, 3, 2), spec(2)), "SUB"),
    "sub broadcast left": (lambda a, b: b - a, (spec(4, 3, 2), spec(3, 1)), "SUB"),
    "sub from constant": (lambda a: 1.5 - a, (spec(4, 3),), "SUB"),
    "sub with relu": (lambda a, b: tf.nn.relu(a - b), (spec(4, 3), spec(3)), "SUB"),
    "square": (tf.square, (spec(4, 3),), "SQUARE"),
    "squared difference": (
        lambda a, b: tf.math.squared_difference(a, b),
        (spec(4, 3), spec(4, 1)),
        "SQUARED_DIFFERENCE",
    ),
    "abs": (tf.abs, (spec(4, 3),), "ABS"),
    "add_n": (lambda a, b, c: tf.add_n([a, b, c]), (spec(4, 3),) * 3, "ADD_N"),
    "add_n of tiled": (
        lambda a, b: tf.add_n([tf.tile(b, [1, 3, 1]), a]),
        (spec(4, 3, 2), spec(4, 1, 2)),
        "TILE",
    ),
    "add_n of repeated": (
        lambda a, b: tf.add_n([a, tf.tile(b, [1, 2, 1])]),
        (spec(4, 4, 2), spec(4, 2, 2)),
        "ADD_N",
    ),
    "add_n of tiled only": (
        lambda a, b: tf.add_n([tf.tile(a, [1, 3, 1]), tf.tile(b, [1, 3, 1])]),
        (spec(4, 1, 2), spec(4, 1, 2)),
        "ADD_N",
    ),
    "sum over places": (lambda a: tf.reduce_sum(a, 1), (spec(4, 128, 40),), "+RESHAPE"),
    "mean over places": (
        lambda a: a - tf.reduce_mean(a, -2, keepdims=True),
        (spec(4, 128, 40),),
        "+RESHAPE",
    ),
    "greater": (lambda a: tf.cast(a > 0.0, tf.float32), (spec(4, 3),), "CAST"),
    "greater than": (lambda a: tf.cast(a > 0.5, tf.float32), (spec(4, 3),), "CAST"),
    "less": (lambda a: tf.cast(a < 0.5, tf.float32), (spec(4, 3),), "CAST"),
    "at least": (lambda a: tf.cast(a >= 0.5, tf.float32), (spec(4, 3),), "CAST"),
    "at most": (lambda a: tf.cast(a <= 0.5, tf.float32), (spec(4, 3),), "CAST"),
    "pad": (lambda a: tf.pad(a, [[0, 1], [2, 0]]), (spec(4, 3),), "PAD"),
    "slice": (lambda a: a[1:3, :, -2:], (spec(4, 3, 5),), "STRIDED_SLICE"),
    "slice of integers": (
        lambda a: tf.cast(tf.cast(a, tf.int32)[:, 1:], tf.float32),
        (spec(4, 3),),
        "STRIDED_SLICE",
    ),
    "one row": (lambda a: a[:, -1], (spec(4, 3, 5),), "STRIDED_SLICE"),
    "the only row": (lambda a: a[:, 0], (spec(4, 1, 5),), "STRIDED_SLICE"),
    "turned product": (
        lambda a, b: tf.matmul(a, b, transpose_b=True),
        (spec(4, 3), spec(5, 3)),
        "FULLY_CONNECTED",
    ),
    "batch times turned": (
        lambda a, b: tf.matmul(a, b, transpose_b=True),
        (spec(2, 4, 3), spec(5, 3)),
        "+TRANSPOSE",
    ),
    "convolution same": (*convolution(1, "SAME"), "CONV_2D"),
    "convolution valid": (*convolution(1, "VALID"), "CONV_2D"),
    "convolution stride": (*convolution(2, "SAME"), "CONV_2D"),
    "convolution even stride": (*convolution(2, "VALID", size=4), "CONV_2D"),
    "convolution long stride": (*convolution(3, "VALID", size=2), "CONV_2D"),
    "convolution tiles": (*convolution(2, "VALID", size=2), "CONV_2D"),
    "convolution dilated": (*convolution(1, "SAME", dilation=2), "CONV_2D"),
    "convolution of three rows": (
        lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"),
        (spec(4, 28, 26, 8), spec(3, 3, 8, 9)),
        "CONV_2D",
    ),
    "convolution pixel": (*convolution(1, "VALID", size=1), "CONV_2D"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rewrite_computes_what_the_op_did(name: str) -> None:
    function, specs, changed = CASES[name]
    original = converted(function, *specs)
    rewritten = tune(original)
    before, after = names(original), names(rewritten)
    assert changed.lstrip("+") in (after - before if changed[0] == "+" else before - after)
    rng = np.random.default_rng(1)
    # Halves, so that comparisons meet equal values too.
    values = [(rng.integers(-4, 5, s.shape) / 2).astype(np.float32) for s in specs]
    np.testing.assert_allclose(run(rewritten, values), run(original, values), rtol=1e-6, atol=1e-6)


def sizes_of(content: bytes, name: str) -> list[int]:
    """The numbers of entries that the ops `name` make."""
    (graph,) = subgraphs_of(unpack(content))
    made = [op.outputs[0] for op in graph.subgraph.operators if graph.name(op) == name]
    return [int(np.prod(graph.shape(tensor))) for tensor in made]


@pytest.mark.parametrize("turned", [False, True])
def test_a_constant_meets_the_smaller_factor(*, turned: bool) -> None:
    def scaled(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        product = b * (2.0 * a) if turned else (a * 2.0) * b
        return tf.nn.relu(product)

    original = converted(scaled, spec(4, 3, 2), spec(4, 1, 2))
    rewritten = tune(original)
    assert sizes_of(original, "MUL") == [24, 24] and sizes_of(rewritten, "MUL") == [8, 24]
    rng = np.random.default_rng(1)
    values = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 2), (4, 1, 2))]
    np.testing.assert_allclose(run(rewritten, values), run(original, values), rtol=1e-6)


def test_a_product_of_two_of_one_size_is_left_as_it_is() -> None:
    original = converted(lambda a, b: tf.exp(2.0 * a) + 2.0 * a * b, spec(4, 3), spec(4, 3))
    assert sizes_of(tune(original), "MUL") == sizes_of(original, "MUL") == [12, 12]


@pytest.mark.parametrize(
    ("before", "rectifiers"), [(tf.nn.relu, 1), (lambda a: tf.nn.relu(a + 1.0), 0), (tf.exp, 1)]
)
def test_what_comes_out_of_a_relu_is_not_rectified_again(before: Any, rectifiers: int) -> None:
    def slope(a: tf.Tensor) -> tf.Tensor:
        result = tf.reshape(before(a), [3, 4])
        return tf.cast(result > 0.0, tf.float32) + tf.tanh(result)

    original = converted(slope, spec(4, 3))
    rewritten = tune(original)
    assert len(sizes_of(rewritten, "RELU")) == rectifiers and sizes_of(rewritten, "SIGN") == [12]
    values = [np.linspace(-2, 2, 12).reshape(4, 3).astype(np.float32)]
    np.testing.assert_allclose(run(rewritten, values), run(original, values), rtol=1e-6)


@pytest.mark.parametrize("loss", ["binary_crossentropy", "huber", "categorical_crossentropy"])
def test_a_file_does_not_grow_with_the_batch(loss: str) -> None:
    """What is constant in the gradient of a loss over pixels is no batch of images in the file."""
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.InputLayer((17, 16, 2)), layers.Conv2D(3, 1)])
    sizes = []
    for batch_size in (2, 16):
        plan = plan_of(
            batch_size=batch_size, unit="example", delta=1e-4, local_training={"loss": loss}
        )
        sizes.append(len(build_client_tflite(model, plan)))
    # Half a batch's floats would be 14 * 17 * 16 * 3 * 2 bytes; shapes and places are a few.
    assert sizes[1] - sizes[0] < 4000


@pytest.mark.parametrize("op", [R.Mul, R.AddV2, R.Div])
@pytest.mark.parametrize("turned", [False, True])
def test_a_constant_of_equal_numbers_is_kept_as_one_beside_its_like(op: Any, turned: bool) -> None:
    def function(values: tf.Tensor) -> tf.Tensor:
        equal = tf.fill([40, 30], 2.5)
        return op(x=values, y=equal) if turned else op(x=equal, y=values)

    values = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)
    original = converted(function, spec(40, 30))
    rewritten = tune(original)
    np.testing.assert_array_equal(run(rewritten, [values]), run(original, [values]))
    assert len(rewritten) < 4 * values.size


def test_a_magnitude_keeps_nan_and_infinity() -> None:
    values = np.array([[np.nan, -np.inf, np.inf, -0.5]], np.float32)
    rewritten = tune(converted(tf.abs, spec(1, 4)))
    np.testing.assert_array_equal(run(rewritten, [values]), np.abs(values))


@pytest.mark.parametrize("case", ["open batch", "same shapes", "integers", "constant weights"])
def test_what_is_fast_or_open_stays(case: str) -> None:
    function, specs, name = {
        "open batch": (lambda a, b: a - b, (spec(None, 3), spec(3)), "SUB"),
        "same shapes": (lambda a, b: a - b, (spec(2, 3), spec(2, 3)), "SUB"),
        "integers": (tf.abs, (tf.TensorSpec([2, 3], tf.int32),), "ABS"),
        "constant weights": (
            lambda a: tf.matmul(a, tf.ones([3, 2])),
            (spec(4, 3),),
            "FULLY_CONNECTED",
        ),
    }[case]
    assert name in names(tune(converted(function, *specs)))


def test_equal_ops_run_once_and_equal_constants_are_kept_once() -> None:
    table = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)

    def twice(x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x + table) * tf.exp(x + tf.constant(table))

    content = tune(pack(unpack(converted(twice, spec(40, 40)))))
    adds = [op for op in operators_of(content) if op.name == "ADD"]
    assert len(adds) == 1 and len(content) < 1.5 * table.nbytes
    x = np.ones_like(table)
    expected = np.tanh(x + table) * np.exp(x + table)
    np.testing.assert_allclose(run(content, [x]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("taps", "dilation", "before"), [(3, 1, 1), (3, 1, 0), (5, 2, 4), (2, 1, 1)]
)
def test_kernel_and_image_gradient_meet_the_outputs_through_the_same_windows(
    taps: int, dilation: int, before: int
) -> None:
    """Otherwise the patches that both take would be gathered twice."""
    size = 12 + (taps - 1) * dilation - 2 * before
    axis = Axis(size, 12, taps, 1, dilation, before)
    assert axis.after == before and Blocks.of(axis).outputs == axis.behind


@pytest.mark.parametrize(("rows", "detour"), [(128, True), (2, False)])
def test_only_large_reshapes_leave_xnnpack(rows: int, detour: bool) -> None:
    def turn(x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.reshape(tf.sin(x), [16 * rows, 8])) + 1.0

    content = tune(converted(turn, spec(rows, 128)))
    graph = subgraphs_of(unpack(content))[0]
    shapes = [graph.shape(t) for op in graph.subgraph.operators for t in op.outputs]
    assert any(len(shape) > 6 for shape in shapes) is detour
    x = np.random.default_rng(0).normal(size=(rows, 128)).astype(np.float32)
    expected = np.tanh(np.sin(x).reshape(16 * rows, 8)) + 1
    np.testing.assert_allclose(run(content, [x]), expected, rtol=1e-5, atol=1e-6)


def test_what_a_large_reshape_made_and_its_source_are_both_read_later() -> None:
    """Both may lie in the same memory: nothing may be computed into it meanwhile."""

    def both(x: tf.Tensor) -> tf.Tensor:
        source = tf.sin(x)
        turned = tf.reshape(source, [256, 128])
        return tf.reshape(tf.exp(turned) + turned, [128, 256]) * source - tf.abs(source)

    content = tune(converted(both, spec(128, 256)))
    x = np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)
    s = np.sin(x)
    np.testing.assert_allclose(
        run(content, [x]), (np.exp(s) + s) * s - np.abs(s), rtol=1e-5, atol=1e-5
    )


def test_a_variable_is_read_anew_after_it_was_written() -> None:
    class Counter(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = tf.Variable([1.0, 2.0])

        def step(self, by: tf.Tensor) -> dict[str, tf.Tensor]:
            before = self.value * 1.0
            self.value.assign(before + by)
            return {"before": before, "after": self.value * 1.0}

    counter = Counter()
    step = tf.function(counter.step, autograph=False).get_concrete_function(spec(2))
    content = conversion.convert(
        counter, {"step": step}, model=tf.keras.Sequential(), variables_change=True
    )
    runner = load_interpreter(content).get_signature_runner("step")
    for turn in range(3):
        result = runner(by=np.array([1.0, 10.0], np.float32))
        np.testing.assert_array_equal(result["before"], [1.0 + turn, 2.0 + 10 * turn])
        np.testing.assert_array_equal(result["after"], [2.0 + turn, 12.0 + 10 * turn])


def test_a_training_step_gathers_the_patches_of_each_convolution_once() -> None:
    file = unpack(build_client_tflite(build("cnn"), plan_of(batch_size=BATCH_SIZE)))
    (train,) = (d.subgraphIndex for d in file.signatureDefs if d.signatureKey == b"train")
    graph = subgraphs_of(file)[train]
    operators = graph.subgraph.operators
    ops = [graph.name(op) for op in operators]
    gathered = [graph.shape(op.outputs[0]) for op in operators if graph.name(op) == "GATHER"]
    # One for each layer, shared by forward pass and kernel gradient, and one for the second's
    # image gradient. The first layer's rows are short. Others order kernels.
    assert [shape[0] for shape in gathered].count(BATCH_SIZE) == 3
    assert ops.count("CONCATENATION") == 1
    assert "CONV_2D" not in ops and "TRANSPOSE_CONV" not in ops
