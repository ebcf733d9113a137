"""`DPModel`: Keras' compile and fit, with DP-SGD inside and sampling that is really done.

tensorflow-privacy's Keras models shuffle and take epochs, while their epsilon is that
of Poisson sampling; here every step draws its batch by independent coins. Gradients
are clipped by the same code as in federated simulation and on devices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.shapes import require_declared_input
from models.validate import validate_model
from tf_dpfl.central.examples import CentralExamples
from tf_dpfl.central.losses import loss_of_keras
from tf_dpfl.central.sampling import PoissonSampler
from tf_dpfl.central.statement import PrivacyStatement, state_privacy, steps_of_dp_sgd
from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.faster_gradients import FASTER_GRADIENTS
from tf_dpfl.client_work.per_example import clipped_gradient_sum
from tf_dpfl.privacy.calibration import calibrated_noise
from tf_dpfl.privacy.mechanism import GaussianRounds
from tf_dpfl.protocol.checks import require_finite_nonnegative, require_finite_positive
from tf_dpfl.protocol.errors import BudgetError
from tf_dpfl.protocol.noise import gaussian_noise, noise_stddev_of_sum
from tf_dpfl.protocol.plan import LocalTraining

_LARGEST_PIECE = 256

# What is charged is what was made: no batch is drawn before its step.
_NOTHING_AHEAD = tf.data.Options()
_NOTHING_AHEAD.experimental_optimization.inject_prefetch = False


class DPModel(tf.keras.Model):  # type: ignore[misc]  # Keras has no types
    """`model` with a `fit` that is differentially private for every single example.

    Use it as the Keras model it wraps: `compile`, `fit`, `evaluate`, `predict`,
    callbacks. The weights are those of `model` itself, which is trained by this.

    Args:
      model: a Sequential or functional Keras model with one output, without layers
        that mix examples (`docs/models.md`).
      clip_norm: L2 norm that each example's gradient is clipped to.
      delta: in (0, 1); below one over the number of examples.
      noise_multiplier: standard deviation of the noise on the sum of a step's clipped
        gradients, divided by the clip norm; or
      target_epsilon: that the first `fit` shall have; its noise is solved. Exactly one
        of the two.
      random_bytes: gives the keys of coins and noise; only tests replace it.

    Raises:
      ModelError: naming every layer that can not be trained privately.
      ValueError: a number out of range.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        clip_norm: float,
        delta: float,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ):
        require_declared_input(model)
        validate_model(model)
        super().__init__(inputs=model.inputs, outputs=model.outputs, name=f"dp_{model.name}")
        require_finite_positive("clip_norm", clip_norm)
        if not 0 < delta < 1:
            raise ValueError(f"delta={delta!r} must be in (0, 1)")
        if (noise_multiplier is None) == (target_epsilon is None):
            raise ValueError("noise_multiplier and target_epsilon: give exactly one of the two")
        if noise_multiplier is not None:
            require_finite_nonnegative("noise_multiplier", noise_multiplier)
        self._dp_base = model
        self._dp_clip_norm, self._dp_delta = clip_norm, delta
        self._dp_noise, self._dp_target = noise_multiplier, target_epsilon
        self._dp_random_bytes = random_bytes
        self._dp_spending: list[GaussianRounds] = []
        self._dp_loss = ""
        self._dp_batch_size = self._dp_piece = 0
        self._dp_computation: ClientComputation | None = None
        self._dp_method = ""

    def privacy(self) -> PrivacyStatement:
        """What all `fit` so far have given away."""
        return state_privacy(self._dp_spending, delta=self._dp_delta, clip_norm=self._dp_clip_norm)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **others: Any) -> None:
        """As `tf.keras.Model.compile`, for the losses of a plan.

        Raises ModelError for a loss that is not known or does not fit the model's end.
        """
        self._dp_loss = loss_of_keras(loss, self._dp_base)
        super().compile(optimizer=optimizer, loss=loss, **others)

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        batch_size: int = 32,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        piece: int | None = None,
        **others: Any,
    ) -> tf.keras.callbacks.History:
        """Trains with DP-SGD; charged step by step, before a step is made.

        Args:
          x: array [n, ...], or a list or dictionary of arrays for several inputs.
          y: array [n, ...].
          batch_size: expected examples of a step, which the step's sum is divided by.
          epochs: of `steps_per_epoch` steps.
          steps_per_epoch: by default n / batch_size, rounded up.
          piece: examples whose gradients are held at a time; by default at most 256.
          others: of Keras' `fit`: `validation_data`, `callbacks`, `verbose`, ...

        Returns Keras' history. It holds the validation's figures: loss and metrics of
        the training examples are private and are not computed.

        Raises:
          BudgetError: the target epsilon has been spent by an earlier `fit`.
          ValueError: arrays that do not fit, or an argument that has no meaning here.
        """
        _refuse(others)
        examples = CentralExamples.of(x, y, self._interface(batch_size))
        sampler = PoissonSampler(
            examples.count, expected=batch_size, random_bytes=self._dp_random_bytes
        )
        if not self._dp_delta * examples.count < 1:
            raise ValueError(
                f"delta={self._dp_delta:g} must be below 1/n={1 / examples.count:g}: a larger "
                "one allows publishing an example whole"
            )
        per_epoch = steps_per_epoch or -(-examples.count // batch_size)
        noise = self._noise_for(sampler.probability, epochs * per_epoch)
        self._prepare(batch_size, piece or min(batch_size, _LARGEST_PIECE))
        steps = self._steps(examples, sampler, noise, number=epochs * per_epoch)
        data = tf.data.Dataset.from_generator(
            lambda: steps, output_signature=self._signature(examples)
        ).with_options(_NOTHING_AHEAD)
        return super().fit(data, epochs=epochs, steps_per_epoch=per_epoch, **others)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of DP-SGD on the pieces of a drawn batch; says nothing about them."""
        batch, weight, noise = data
        computation = self._dp_computation
        assert computation is not None
        size = self._dp_piece
        values = computation.interface.random_values

        def add_piece(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            def rows(values: tf.Tensor) -> tf.Tensor:
                taken = values[index * size : (index + 1) * size]
                return tf.ensure_shape(taken, [size, *values.shape[1:]])

            added = clipped_gradient_sum(
                computation.example_losses,
                {name: rows(tensor) for name, tensor in batch.items()},
                rows(weight),
                tf.random.uniform([size, values]) if values else None,
                variables=computation.variables,
                scale=tf.constant(1.0),
                sensitivity=tf.constant(self._dp_clip_norm, tf.float32),
                op_gradients=FASTER_GRADIENTS,
                method=self._dp_method,
            )
            return index + 1, *(total + part for total, part in zip(sums, added))

        zeros = [tf.zeros(variable.shape) for variable in computation.variables]
        _, *sums = tf.while_loop(
            lambda index, *_: index < tf.shape(weight)[0] // size,
            add_piece,
            (tf.constant(0), *zeros),
            parallel_iterations=1,
        )
        shares = computation.split(noise)
        gradients = [(total + share) / self._dp_batch_size for total, share in zip(sums, shares)]
        self.optimizer.apply_gradients(zip(gradients, computation.variables))
        return {}

    def _interface(self, batch_size: int) -> Any:
        if not self._dp_loss:
            raise ValueError("compile the model first: fit needs an optimizer and a loss")
        return self._computation(batch_size).interface

    def _computation(self, batch_size: int) -> ClientComputation:
        settings = LocalTraining(1, batch_size, 1.0, loss=self._dp_loss)
        return ClientComputation(self._dp_base, settings, op_gradients=FASTER_GRADIENTS)

    def _prepare(self, batch_size: int, piece: int) -> None:
        """Traces anew: another batch size or piece is another graph."""
        self._dp_computation = self._computation(piece)
        self._dp_method = self._dp_computation.choose_dp_method().name
        self._dp_batch_size, self._dp_piece = batch_size, piece
        self.train_function = None

    def _noise_for(self, probability: float, steps: int) -> float:
        if self._dp_noise is not None:
            return self._dp_noise
        assert self._dp_target is not None
        if self._dp_spending:
            raise BudgetError(
                f"target_epsilon={self._dp_target:g} was spent by an earlier fit; make the whole "
                "training one fit, or give a noise_multiplier"
            )
        release = steps_of_dp_sgd(
            noise_multiplier=1.0, sampling_probability=probability, steps=steps
        )
        return calibrated_noise(release, target_epsilon=self._dp_target, delta=self._dp_delta)

    def _steps(
        self, examples: CentralExamples, sampler: PoissonSampler, noise: float, *, number: int
    ) -> Iterator[tuple[Mapping[str, NDArray[Any]], NDArray[np.float32], NDArray[np.float32]]]:
        """The data of each step, charged when it is asked for."""
        computation = self._dp_computation
        assert computation is not None
        stddev = noise_stddev_of_sum(clip_norm=self._dp_clip_norm, noise_multiplier=noise)
        one = steps_of_dp_sgd(
            noise_multiplier=noise, sampling_probability=sampler.probability, steps=1
        )
        for _ in range(number):
            self._dp_spending.append(one)
            batch, weight = examples.padded(sampler.draw(), multiple=self._dp_piece)
            share = gaussian_noise(
                computation.layout.size, stddev=stddev, random_bytes=self._dp_random_bytes
            )
            yield batch, weight, share

    def _signature(self, examples: CentralExamples) -> Sequence[Any]:
        assert self._dp_computation is not None
        batch = {
            name: tf.TensorSpec([None, *values.shape[1:]], values.dtype)
            for name, values in examples.arrays.items()
        }
        return (
            batch,
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([self._dp_computation.layout.size], tf.float32),
        )


def _refuse(others: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments of Keras' fit that would change what is private."""
    meaningless = {
        "class_weight": "an example's influence is bounded by the clip norm alone",
        "sample_weight": "an example's influence is bounded by the clip norm alone",
        "validation_split": "pass validation_data",
        "shuffle": "every step draws its batch by independent coins",
        "initial_epoch": "every call is accounted whole; say the epochs that are left",
    }
    for name, reason in meaningless.items():
        if others.get(name) is not None:
            raise ValueError(f"{name} has no meaning here: {reason}; leave it out")
