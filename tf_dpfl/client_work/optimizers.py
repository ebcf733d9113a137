"""The local optimizers, as updates of variables.

TensorFlow's and Keras' own optimizers bring ops and slots that TFLite has not;
these are the same formulas on plain variables (tests hold them to Keras).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tf_dpfl.protocol.plan import OPTIMIZER_SLOTS, LocalTraining
from tf_dpfl.protocol.step_scale import rate_before_noise


class LocalOptimizer(tf.Module):
    """`sgd`, `momentum` or `adam`, with FedProx' proximal term when the plan has one.

    sgd: w -= lr * g. momentum: v = momentum * v + g; w -= lr * v. adam: Kingma &
    Ba 1412.6980 with both bias corrections, as Keras computes it. The proximal
    term adds mu * (w - start) to every gradient (Li et al. 1812.06127).
    """

    def __init__(self, variables: Sequence[tf.Variable], settings: LocalTraining):
        super().__init__(name="local_optimizer")
        self._variables = list(variables)
        self._settings = settings
        slots = OPTIMIZER_SLOTS[settings.optimizer]
        self._slots = [[_zeros_like(v) for v in variables] for _ in range(slots)]
        self._steps = [tf.Variable(0.0, trainable=False)] if settings.optimizer == "adam" else []
        self._start = [_zeros_like(v) for v in variables] if settings.proximal else []

    @property
    def state_size(self) -> int:
        """Number of float32 values of `get_state`."""
        return sum(math.prod(variable.shape.as_list()) for variable in self._state)

    @property
    def _state(self) -> list[tf.Variable]:
        return [slot for slots in self._slots for slot in slots] + self._steps

    def reset(self) -> None:
        """Back to the state before the first step, started at the current weights."""
        for variable in self._state:
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        for start, variable in zip(self._start, self._variables):
            start.assign(variable)

    def get_state(self) -> tf.Tensor:
        """Everything a next round can go on from, float32 [state_size]."""
        return tf.concat([tf.reshape(variable, [-1]) for variable in self._state], axis=0)

    def set_state(self, state: tf.Tensor) -> None:
        """Takes what `get_state` returned."""
        pieces = tf.split(state, [math.prod(v.shape.as_list()) for v in self._state])
        for variable, piece in zip(self._state, pieces):
            variable.assign(tf.reshape(piece, variable.shape))

    def scale_before_noise(self, learning_rate: tf.Tensor) -> tf.Tensor:
        """What gradients are multiplied with for `apply_noised`, float32 []."""
        per_example = tf.constant(1.0 / self._settings.batch_size)
        if rate_before_noise(self._settings):
            return learning_rate * per_example
        return per_example

    def apply_noised(self, step: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """One step of DP-SGD, noised already (`protocol.private_step`): a tensor a variable."""
        if not rate_before_noise(self._settings):
            self.apply(step, learning_rate)
            return
        for variable, part in zip(self._variables, step):
            variable.assign_sub(part)

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """One step with one gradient for each variable."""
        gradients = self._with_proximal_term(gradients)
        if self._settings.optimizer == "sgd":
            for variable, gradient in zip(self._variables, gradients):
                variable.assign_sub(learning_rate * gradient)
        elif self._settings.optimizer == "momentum":
            for variable, velocity, gradient in zip(self._variables, self._slots[0], gradients):
                step = self._settings.momentum * velocity + gradient
                velocity.assign(step)
                variable.assign_sub(learning_rate * step)
        else:
            self._apply_adam(gradients, learning_rate)

    def _with_proximal_term(self, gradients: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        mu = self._settings.proximal
        if not mu:
            return gradients
        return [
            gradient + mu * (variable - start)
            for gradient, variable, start in zip(gradients, self._variables, self._start)
        ]

    def _apply_adam(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        beta_1, beta_2 = self._settings.beta_1, self._settings.beta_2
        (steps,) = self._steps
        count = steps + 1.0
        steps.assign(count)
        rate = learning_rate * tf.sqrt(1.0 - tf.pow(beta_2, count)) / (1.0 - tf.pow(beta_1, count))
        for variable, mean, square, gradient in zip(self._variables, *self._slots, gradients):
            new_mean = mean + (gradient - mean) * (1.0 - beta_1)
            new_square = square + (gradient * gradient - square) * (1.0 - beta_2)
            mean.assign(new_mean)
            square.assign(new_square)
            step = rate * new_mean / (tf.sqrt(new_square) + self._settings.epsilon)
            variable.assign_sub(step)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
