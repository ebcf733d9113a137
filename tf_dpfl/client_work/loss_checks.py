"""Whether a model's prediction and a loss fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.imports import first_line
from tf_dpfl.protocol.interface import INT32, ExampleInterface, ExampleTensor

# What a probability stays one through, alone or together with others.
_OF_ONE = frozenset(
    "ExpandDims Identity Max Mean Min Reshape Slice Squeeze StridedSlice Transpose".split()
)
_OF_SEVERAL = frozenset("Add AddN AddV2 ConcatV2 Maximum Minimum Mul Pack RealDiv".split())


def logits_of(prediction: tf.Tensor, activation: str, *, loss: str) -> tf.Tensor:
    """`prediction`, or what the op `activation` was applied to to make it.

    Raises ModelError where it holds probabilities made otherwise (averaged, by another
    activation): a cross-entropy would take them for logits.
    """
    op, shape = prediction.op, None
    while op.type == "Identity" or _keeps_last_axis(op):
        if op.type == "Reshape" and shape is None:  # as TimeDistributed ends
            shape = op.inputs[1]
        op = op.inputs[0].op
    if op.type == activation:
        logits = op.inputs[0]
        if shape is not None:
            logits = tf.reshape(logits, shape)
            logits.set_shape(prediction.shape)
        return logits
    if _holds_probabilities(prediction):
        raise ModelError(
            f"the model ends in probabilities ({op.name}), and loss={loss!r} takes logits: let it "
            f"end in a layer without activation, or in {activation.lower()} itself"
        )
    return prediction


def _keeps_last_axis(op: Any) -> bool:
    """Whether `op` is a Reshape that leaves each row, of a last axis of fixed size, as it is."""
    if op.type != "Reshape":
        return False
    before, after = op.inputs[0].shape, op.outputs[0].shape
    return bool(before.rank and after.rank and before[-1] and before[-1] == after[-1])


def _holds_probabilities(tensor: tf.Tensor) -> bool:
    """Whether `tensor` is made of results of softmax or sigmoid alone, moved or averaged."""
    op = tensor.op
    if op.type in ("Sigmoid", "Softmax") or _is_share_of_sum(op):
        return True
    if op.type in _OF_ONE:
        return _holds_probabilities(op.inputs[0])
    if op.type not in _OF_SEVERAL:
        return False
    parts = [part for part in op.inputs if part.op.type != "Const"]
    if op.type in ("Mul", "RealDiv") and len(parts) > 1:
        return False  # a gate, not a scale
    return bool(parts) and all(_holds_probabilities(part) for part in parts)


def _is_share_of_sum(op: Any) -> bool:
    """Whether `op` divides values by their own sum, as a softmax over other axes ends."""
    return (
        op.type == "RealDiv"
        and op.inputs[1].op.type == "Sum"
        and op.inputs[1].op.inputs[0] is op.inputs[0]
    )


def require_a_loss_each(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], interface: ExampleInterface, *, name: str
) -> None:
    """Raises ModelError unless `function` (y, prediction) gives each example a loss of its own.

    A mean over the batch would count padding, and one example's gradient would hold
    another's. Tried on random examples, outside of any graph.
    """
    draw = np.random.default_rng(0)
    y = _three(draw, interface.target)
    prediction = _three(draw, ExampleTensor("prediction", "float32", interface.output_shape))
    traced = tf.function(function, autograph=False)

    def losses(rows: Sequence[int]) -> Any:
        return traced(tf.constant(y[rows]), tf.constant(prediction[rows]))

    try:
        first, second = losses([0, 1]), losses([0, 2])
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"{name} fails on two examples: {first_line(error)}") from error
    if not isinstance(first, tf.Tensor) or first.dtype != tf.float32 or first.shape != [2]:
        raise ModelError(
            f"{name} gives {_described(first)} for two examples; it must give each its own loss, "
            "float32 of shape (n,)"
        )
    if not np.allclose(first[0], second[0], rtol=1e-5, equal_nan=True):
        raise ModelError(
            f"{name}: one example changes another one's loss; leave out what goes over the batch"
        )


def _three(draw: np.random.Generator, tensor: ExampleTensor) -> Any:
    """Three different examples of `tensor`, values that are probabilities too."""
    values = draw.uniform(0.1, 0.9, (3, *tensor.shape))
    return (values > 0.5).astype(np.int32) if tensor.dtype == INT32 else values.astype(np.float32)


def _described(found: Any) -> str:
    if isinstance(found, tf.Tensor):
        return f"{found.dtype.name} of shape {tuple(found.shape)}"
    return type(found).__name__
