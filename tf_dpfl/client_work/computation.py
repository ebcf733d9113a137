"""One client's computation on a Keras model: the part every runtime shares.

TFF calls these functions in a loop over users (`local_training`), the exporter
turns each into a TFLite signature. They are traced, never run eagerly: call
them inside `tf.function`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.losses import example_losses
from tf_dpfl.client_work.optimizers import LocalOptimizer
from tf_dpfl.client_work.per_example import Method, choose_method, clipped_gradient_sum
from tf_dpfl.client_work.preparing import KerasModel, PreparedModel, prepare_model
from tf_dpfl.client_work.update import privatize
from tf_dpfl.protocol.interface import TARGET
from tf_dpfl.protocol.plan import LocalTraining
from tf_dpfl.protocol.tensors import TensorLayout

Batch = Mapping[str, tf.Tensor]


def layout_of(model: tf.keras.Model) -> TensorLayout:
    """Names and shapes of the model's trainable variables, in Keras' order."""
    variables = model.trainable_variables
    return TensorLayout(
        tuple(v.name for v in variables), tuple(tuple(v.shape.as_list()) for v in variables)
    )


class ClientComputation(tf.Module):
    """What one client computes with `model`; its variables are the client's state.

    A batch is a mapping from the names of `interface` to tensors: the model's
    inputs and the target `y`, each [B, ...].

    Args:
      model: a built Sequential or functional Keras model with one output.
      local_training: the plan's section.
      op_gradients: for each op type of the model, the registered name of the
        gradient to use instead of TensorFlow's own. The exporter passes rules
        made of TFLite builtins; without it the native gradients are used.
      forward: runs the model; by default what `prepare_model` makes of it.
      dp_method: how `train_dp_batch` clips, "one_pass" or "loop"; by default
        what `choose_dp_method` says.
      clipping: how `privatize_update` clips: "global", "per_layer" or "value".

    Raises:
      ModelError: the model does not fit the plan's loss; all faults at once.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        local_training: LocalTraining,
        *,
        op_gradients: Mapping[str, str] | None = None,
        forward: PreparedModel | KerasModel | None = None,
        dp_method: str | None = None,
        clipping: str = "global",
    ):
        super().__init__(name="client")
        self._forward = prepare_model(model) if forward is None else forward
        self.layout = layout_of(model)
        self.interface = interface_of(
            model, local_training, random_values=self._forward.random_values
        )
        self._variables = model.trainable_variables
        self._fixed = model.non_trainable_variables  # to be saved with the functions
        self._losses = example_losses(local_training.loss)
        self._batch_size = local_training.batch_size
        self._dp_method = dp_method
        self._clipping = clipping
        self._optimizer = LocalOptimizer(self._variables, local_training)
        self._op_gradients = dict(op_gradients or {})

    @property
    def variables(self) -> list[tf.Variable]:
        """The trained variables, in the order of `layout`."""
        return list(self._variables)

    @property
    def sizes(self) -> list[int]:
        """Entries of each variable, in the order of `layout`."""
        return [math.prod(shape) for shape in self.layout.shapes]

    def set_weights(self, weights: tf.Tensor) -> tf.Tensor:
        """Starts from `weights` (float32 [d]) with a fresh optimizer; returns d."""
        for variable, value in zip(self._variables, self.split(weights)):
            variable.assign(value)
        self._optimizer.reset()
        return tf.constant(self.layout.size, tf.int32)

    def get_optimizer_state(self) -> tf.Tensor:
        """What the local optimizer can go on from in another round, float32 [s]."""
        return self._optimizer.get_state()

    def set_optimizer_state(self, state: tf.Tensor) -> tf.Tensor:
        """Goes on from what `get_optimizer_state` gave; after `set_weights`. Returns s."""
        self._optimizer.set_state(state)
        return tf.constant(self._optimizer.state_size, tf.int32)

    def get_weights(self) -> tf.Tensor:
        """The current weights, float32 [d]."""
        return tf.concat([tf.reshape(v, [-1]) for v in self._variables], axis=0)

    def train_batch(
        self,
        batch: Batch,
        weight: tf.Tensor,
        learning_rate: tf.Tensor,
        random: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """One local step; returns the weighted mean loss, float32 [].

        Args:
          batch: inputs and target, [B, ...] each.
          weight: float32 [B], 1 for an example and 0 for padding.
          learning_rate: float32 [].
          random: uniforms in [0, 1), float32 [B, interface.random_values]; None
            when the model has no random layer.
        """
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map(self._op_gradients):
            losses = self.example_losses(batch, random)
            loss = tf.reduce_sum(losses * weight) / tf.maximum(tf.reduce_sum(weight), 1.0)
        # Not a GradientTape: a tape does not look at the override map.
        handles = [
            graph.capture(v.handle) if isinstance(graph, FuncGraph) else v.handle
            for v in self._variables
        ]
        gradients = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for v, g in zip(self._variables, tf.gradients(loss, handles))
        ]
        self._optimizer.apply(gradients, learning_rate)
        return loss

    def train_dp_batch(
        self,
        batch: Batch,
        weight: tf.Tensor,
        learning_rate: tf.Tensor,
        sensitivity: tf.Tensor,
        noise: Sequence[tf.Tensor],
        random: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """One step of DP-SGD (Abadi et al. 1607.00133); returns B, int32 [].

        The step is the sum of weight_i * gradient_i * min(a, sensitivity / its norm)
        + noise. Plain SGD takes it off the weights, with a = learning_rate / B; other
        optimizers take it for the gradient, with a = 1 / B. B is public, that of
        partial and empty batches too. No learning rate lets an example change the step
        by more than `sensitivity` (`protocol.private_step`).

        Args:
          batch: inputs and target, [B, ...] each, B the plan's batch size.
          weight: float32 [B], 1 for an example and 0 for padding.
          learning_rate: float32 [].
          sensitivity: float32 [], the L2 norm one example's part of the step is
            clipped to.
          noise: float32, one tensor a variable in its shape, already scaled to the
            standard deviation that a step of this sensitivity needs.
          random: as for `train_batch`.
        """
        sums = clipped_gradient_sum(
            self.example_losses,
            batch,
            weight,
            random,
            variables=self._variables,
            scale=self._optimizer.scale_before_noise(learning_rate),
            sensitivity=sensitivity,
            op_gradients=self._op_gradients,
            method=self._dp_method or self.choose_dp_method().name,
        )
        step = [total + share for total, share in zip(sums, noise)]
        self._optimizer.apply_noised(step, learning_rate)
        return tf.constant(self._batch_size, tf.int32)

    def choose_dp_method(self) -> Method:
        """One pass over the batch where that is sound for the model, else the loop."""
        size, values = self._batch_size, self.interface.random_values
        return choose_method(
            self.example_losses,
            {t.name: tf.TensorSpec([size, *t.shape], t.dtype) for t in self.interface.tensors},
            tf.TensorSpec([size, values]) if values else None,
            variables=self._variables,
            op_gradients=self._op_gradients,
        )

    def infer(self, inputs: Batch) -> tf.Tensor:
        """The model's prediction, float32 [n, ...], for inputs of [n, ...] each."""
        return self._predict(inputs, training=False)

    def update(self, initial: tf.Tensor) -> tf.Tensor:
        """Current weights minus `initial`, float32 [d]; not yet private."""
        return self.get_weights() - initial

    def privatize_update(
        self, initial: tf.Tensor, clip_norm: tf.Tensor, noise: tf.Tensor
    ) -> tf.Tensor:
        """The report, float32 [d]: clip(current - `initial`) + `noise`."""
        return privatize(
            self.update(initial),
            clip_norm=clip_norm,
            noise=noise,
            clipping=self._clipping,
            sizes=self.sizes,
        )

    def example_losses(self, batch: Batch, random: tf.Tensor | None) -> tf.Tensor:
        """The loss of each example in training, float32 [B]; arguments as `train_batch`."""
        prediction = self._predict(batch, training=True, random=random)
        return self._losses(batch[TARGET], prediction)

    def _predict(self, batch: Batch, *, training: bool, random: tf.Tensor | None = None) -> Any:
        inputs = [batch[tensor.name] for tensor in self.interface.inputs]
        return self._forward(inputs, training=training, random=random)

    def split(self, flat: tf.Tensor) -> Sequence[tf.Tensor]:
        """Flat weights, float32 [d], as one tensor a variable."""
        pieces = tf.split(flat, self.sizes)
        return [tf.reshape(p, shape) for p, shape in zip(pieces, self.layout.shapes)]
