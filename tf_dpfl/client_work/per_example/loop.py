"""The clipped sum, one example after the other: sound for every model.

The model sees a batch of one example at a time, so that whatever it computes is
a function of that example alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tf_dpfl.client_work.per_example.clipping import contribution_factors
from tf_dpfl.client_work.per_example.tracing import handles_of, overriding
from tf_dpfl.client_work.update import sum_of_squares

Losses = Callable[[Mapping[str, tf.Tensor], "tf.Tensor | None"], tf.Tensor]


def loop_clipped_sum(
    losses: Losses,
    batch: Mapping[str, tf.Tensor],
    weight: tf.Tensor,
    random: tf.Tensor | None,
    *,
    variables: Sequence[tf.Variable],
    scale: tf.Tensor,
    sensitivity: tf.Tensor,
    op_gradients: Mapping[str, str],
) -> list[tf.Tensor]:
    """As `clipped_gradient_sum`; one trace of the model, run once for each example."""
    sizes = [math.prod(v.shape) for v in variables]

    def add_example(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = {name: _row(values, index) for name, values in batch.items()}
        with overriding(op_gradients):
            loss = losses(example, None if random is None else _row(random, index))
        handles = handles_of(variables)
        gradient = tf.concat(
            [
                tf.zeros([size]) if g is None else tf.reshape(tf.convert_to_tensor(g), [-1])
                for size, g in zip(sizes, tf.gradients(tf.reduce_sum(loss), handles))
            ],
            axis=0,
        )
        factor, counts = contribution_factors(
            sum_of_squares(gradient),
            tf.reshape(loss, []),
            tf.reshape(_row(weight, index), []),
            scale=scale,
            sensitivity=sensitivity,
        )
        return index + 1, total + tf.where(counts, gradient * factor, 0.0)

    _, total = tf.while_loop(
        lambda index, total: index < weight.shape[0],
        add_example,
        (tf.constant(0), tf.zeros([sum(sizes)])),
        parallel_iterations=1,  # memory: one example's activations at a time
    )
    return [tf.reshape(g, v.shape) for g, v in zip(tf.split(total, sizes), variables)]


def _row(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Row `index` of `values` as a batch of one."""
    return tf.ensure_shape(tf.gather(values, [index]), [1, *values.shape[1:]])
