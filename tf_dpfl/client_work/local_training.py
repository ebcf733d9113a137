"""A client's whole local training: epochs over its examples, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from tf_dpfl.client_work.computation import Batch, ClientComputation
from tf_dpfl.protocol.plan import LocalTraining

StepValues = Callable[[tf.Tensor], tf.Tensor]
"""The values for step number i (int32 []) of one client's training, counted over all epochs."""


@dataclass(frozen=True)
class PrivateSteps:
    """Steps of DP-SGD in place of plain ones.

    Attributes:
      sensitivity: float32 [], the most one example changes a step in L2 norm.
      noise: float32 [d] for each step, of the standard deviation that a step of this
        sensitivity needs; independent between steps.
    """

    sensitivity: tf.Tensor
    noise: StepValues


def train_locally(
    computation: ClientComputation,
    examples: Batch,
    count: tf.Tensor,
    *,
    settings: LocalTraining,
    random: StepValues | None = None,
    private: PrivateSteps | None = None,
) -> None:
    """Trains on the first `count` examples in stored order, `settings.epochs` times.

    The last batch of an epoch is filled up with examples of weight 0.

    Args:
      computation: holds the weights; they are changed.
      examples: inputs and target of all examples, [n, ...] each, n a static
        multiple of the batch size.
      count: int32 [], number of real examples, 0 to n.
      settings: the plan's section.
      random: uniforms, float32 [batch_size, random_values]; needed by models with
        random layers.
      private: makes every step one of DP-SGD.
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
        if private is None:
            done = computation.train_batch(batch, weight, learning_rate, uniforms)
        else:
            noise = computation.split(private.noise(index))
            done = computation.train_dp_batch(
                batch, weight, learning_rate, private.sensitivity, noise, uniforms
            )
        with tf.control_dependencies([done]):
            return (index + 1,)

    tf.while_loop(
        lambda index: index < settings.epochs * batches,
        step,
        (tf.constant(0),),
        parallel_iterations=1,  # the steps change the same variables
    )
