"""Gradients of normalisation over the positions of a channel.

Keras' LayerNormalization runs as a batch normalisation whose channels are its
rows: nothing is mixed between examples there.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.rules import gradient_of
from tf_dpfl.export.gradients.shapes import static_shape


@gradient_of("FusedBatchNormV3")
def _fused_batch_norm(op: Any, grad: Any, *_: Any) -> Any:
    values, scale = op.inputs[0], op.inputs[1]
    channel = 1 if op.get_attr("data_format") == b"NCHW" else 3
    axes = [axis for axis in range(4) if axis != channel]
    broadcast = [1] * 4
    broadcast[channel] = static_shape(values)[channel]
    training = op.get_attr("is_training")
    if training:
        mean = tf.reduce_mean(values, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(values, mean), axes, keepdims=True)
    else:
        mean, variance = (tf.reshape(op.inputs[index], broadcast) for index in (3, 4))
    inverse = tf.math.rsqrt(variance + op.get_attr("epsilon"))
    normal = (values - mean) * inverse
    slope = grad * tf.reshape(scale, broadcast)
    if training:
        slope -= tf.reduce_mean(slope, axes, keepdims=True)
        slope -= normal * tf.reduce_mean(slope * normal, axes, keepdims=True)
    return (
        slope * inverse,
        tf.reduce_sum(grad * normal, axes),
        tf.reduce_sum(grad, axes),
        None,
        None,
    )
