"""The local optimizers, as updates of variables.

TensorFlow's and Keras' own optimizers bring ops and slots that TFLite has not;
these are the same formulas on plain variables (tests hold them to Keras).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfl.protocol.plan import LocalTraining


class LocalOptimizer(tf.Module):
    """`sgd`: w -= lr * g. `momentum`: v = momentum * v + g; w -= lr * v."""

    def __init__(self, variables: Sequence[tf.Variable], settings: LocalTraining):
        super().__init__(name="local_optimizer")
        self._variables = list(variables)
        self._momentum = settings.momentum
        self._velocity = (
            [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in variables]
            if settings.optimizer == "momentum"
            else []
        )

    def reset(self) -> None:
        """Back to the state before the first step."""
        for velocity in self._velocity:
            velocity.assign(tf.zeros(velocity.shape, velocity.dtype))

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """One step with one gradient for each variable."""
        if not self._velocity:
            for variable, gradient in zip(self._variables, gradients):
                variable.assign_sub(learning_rate * gradient)
            return
        for variable, velocity, gradient in zip(self._variables, self._velocity, gradients):
            step = self._momentum * velocity + gradient
            velocity.assign(step)
            variable.assign_sub(learning_rate * step)
