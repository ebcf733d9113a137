"""A client's whole local training: epochs over its examples, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_dpfl.client_work.computation import Batch, ClientComputation
from tf_dpfl.protocol.plan import LocalTraining


def train_locally(
    computation: ClientComputation,
    examples: Batch,
    count: tf.Tensor,
    *,
    settings: LocalTraining,
    random: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> None:
    """Trains on the first `count` examples in stored order, `settings.epochs` times.

    The last batch of an epoch is filled up with examples of weight 0.

    Args:
      computation: holds the weights; they are changed.
      examples: inputs and target of all examples, [n, ...] each, n a static
        multiple of the batch size.
      count: int32 [], number of real examples, 0 to n.
      settings: the plan's section.
      random: the uniforms of step number i (int32 []), float32 [batch_size,
        random_values]; needed by models with random layers.
    """
    size = settings.batch_size
    learning_rate = tf.constant(settings.learning_rate, tf.float32)
    batches = (count + size - 1) // size

    def step(index: tf.Tensor) -> tuple[tf.Tensor]:
        start = index % batches * size
        batch = {
            name: tf.ensure_shape(values[start : start + size], [size, *values.shape[1:]])
            for name, values in examples.items()
        }
        weight = tf.cast(start + tf.range(size) < count, tf.float32)
        uniforms = None if random is None else random(index)
        loss = computation.train_batch(batch, weight, learning_rate, uniforms)
        with tf.control_dependencies([loss]):
            return (index + 1,)

    tf.while_loop(
        lambda index: index < settings.epochs * batches,
        step,
        (tf.constant(0),),
        parallel_iterations=1,  # the steps change the same variables
    )
