"""Gradients of ops that move values without computing."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.static_values import static_value
from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import constant, static_shape


@gradient_of("Reshape", "Squeeze", "ExpandDims")
def _reshape(op: Any, grad: Any) -> Any:
    restored = tf.reshape(grad, static_shape(op.inputs[0]))
    return [restored] + [None] * (len(op.inputs) - 1)


@gradient_of("EnsureShape")
def _ensure_shape(_op: Any, grad: Any) -> Any:
    return grad


@gradient_of("Transpose")
def _transpose(op: Any, grad: Any) -> Any:
    permutation = static_value(op.inputs[1])
    if permutation is None:  # computed from shapes: the converter folds it
        return tf.transpose(grad, tf.math.invert_permutation(op.inputs[1])), None
    return tf.transpose(grad, np.argsort(permutation)), None


@gradient_of("Pad", "PadV2")
def _pad(op: Any, grad: Any) -> Any:
    before = [int(pair[0]) for pair in constant(op, 1)]
    inner = tf.slice(grad, before, static_shape(op.inputs[0]))
    return [inner] + [None] * (len(op.inputs) - 1)


@gradient_of("ConcatV2")
def _concat(op: Any, grad: Any) -> Any:
    *parts, _ = op.inputs
    axis = int(constant(op, len(parts)))
    sizes = [static_shape(part)[axis] for part in parts]
    return [*tf.split(grad, sizes, axis=axis), None]


@gradient_of("Pack")
def _pack(op: Any, grad: Any) -> Any:
    return tf.unstack(grad, axis=op.get_attr("axis"))


@gradient_of("Unpack")
def _unpack(op: Any, *grads: Any) -> Any:
    return tf.stack(grads, axis=op.get_attr("axis"))


@gradient_of("Split")
def _split(op: Any, *grads: Any) -> Any:
    return None, tf.concat(grads, axis=int(constant(op, 0)))


@gradient_of("SplitV")
def _split_by_sizes(op: Any, *grads: Any) -> Any:
    return tf.concat(grads, axis=int(constant(op, 2))), None, None


@gradient_of("Tile")
def _tile(op: Any, grad: Any) -> Any:
    sizes = static_shape(op.inputs[0])
    for axis, (size, total) in enumerate(zip(sizes, static_shape(grad))):
        if size == 1 and total > 1:
            grad = tf.reduce_sum(grad, axis=axis, keepdims=True)
        elif total != size:  # copies beside each other along this axis
            grad = tf.add_n(tf.split(grad, total // size, axis=axis))
    return grad, None


@gradient_of("ReverseV2")
def _reverse(op: Any, grad: Any) -> Any:
    for axis in np.atleast_1d(constant(op, 1)):  # one at a time: see convolution
        grad = tf.reverse(grad, axis=[int(axis)])
    return grad, None


@gradient_of("Slice")
def _slice(op: Any, grad: Any) -> Any:
    starts, whole, kept = constant(op, 1), static_shape(op.inputs[0]), static_shape(grad)
    padding = [(int(a), n - int(a) - k) for a, n, k in zip(starts, whole, kept)]
    return tf.pad(grad, padding), None, None


@gradient_of("StridedSlice")
def _strided_slice(op: Any, grad: Any) -> Any:
    sizes = static_shape(op.inputs[0])
    ranges = [range(*piece.indices(size)) for size, piece in zip(sizes, _pieces(op))]
    grad = tf.reshape(grad, [len(taken) for taken in ranges])
    for axis, (size, taken) in enumerate(zip(sizes, ranges)):
        if taken.step < 0:
            grad, taken = tf.reverse(grad, axis=[axis]), taken[::-1]
        grad = _put_back(grad, axis, taken, size)
    return grad, None, None, None


def _put_back(values: Any, axis: int, taken: range, size: int) -> Any:
    """`values` at the positions `taken` of `axis`, zeros at the others of its `size`."""
    if taken.step > 1:  # zeros behind every value, and those behind the last one cut off
        shape = static_shape(values)
        before, after = list(shape[:axis]), list(shape[axis + 1 :])
        apart = tf.reshape(values, [*before, len(taken), 1, *after])
        spread = [(0, 0)] * (len(shape) + 1)
        spread[axis + 1] = (0, taken.step - 1)
        values = tf.reshape(tf.pad(apart, spread), [*before, len(taken) * taken.step, *after])
        extent = [*before, (len(taken) - 1) * taken.step + 1, *after]
        values = tf.slice(values, [0] * len(shape), extent)
    padding = [(0, 0)] * len(static_shape(values))
    padding[axis] = (taken.start, size - taken.start - static_shape(values)[axis])
    return tf.pad(values, padding) if any(padding[axis]) else values


def _pieces(op: Any) -> list[slice]:
    """One slice per axis of the input of a StridedSlice."""
    begin, end, step = (np.asarray(constant(op, index)) for index in (1, 2, 3))
    masks = {
        name: int(op.get_attr(f"{name}_mask"))
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    rank = len(static_shape(op.inputs[0]))
    named = [axis for axis in range(len(begin)) if not masks["new_axis"] & (1 << axis)]
    pieces: list[slice] = []
    for axis in named:
        bit = 1 << axis
        if masks["ellipsis"] & bit:
            pieces += [slice(None)] * (rank - len(named) + 1)
        elif masks["shrink_axis"] & bit:
            index = int(begin[axis])
            pieces.append(slice(index, index + 1 or None))
        else:
            start = None if masks["begin"] & bit else int(begin[axis])
            stop = None if masks["end"] & bit else int(end[axis])
            pieces.append(slice(start, stop, int(step[axis])))
    return pieces + [slice(None)] * (rank - len(pieces))
