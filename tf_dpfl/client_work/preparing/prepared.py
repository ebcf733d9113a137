"""A Keras model and its prepared twin behind one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.layer_graph import LayerGraph
from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.tracing import functions_inlined, ops_as_converted
from tf_dpfl.protocol.errors import DpflError, ModelError
from tf_dpfl.protocol.imports import first_line


def prepare_model(model: tf.keras.Model) -> PreparedModel:
    """`model` with its layers replaced where a device could not run them.

    Args:
      model: a built Sequential or functional Keras model; it stays as it is, and
        its variables are the prepared model's.

    Raises ModelError where it can not be traced, or draws random numbers by itself.
    """
    prepared = PreparedModel(model)
    if prepared.drawn_inside:
        raise ModelError(
            f"{model.name}: draws random numbers in a way that can not be fed from outside "
            f"({', '.join(prepared.drawn_inside)[:200]}); use Dropout or GaussianNoise as layers"
        )
    return prepared


class KerasModel:
    """The Keras model itself behind the calls of `PreparedModel`: the reference."""

    def __init__(self, model: tf.keras.Model):
        self.random_values = 0
        self._model = model

    def __call__(
        self, inputs: Sequence[tf.Tensor], *, training: bool, random: tf.Tensor | None = None
    ) -> Any:
        """What Keras computes; nothing is fed to random layers."""
        if random is not None:
            raise ValueError(f"{self._model.name}: Keras' own layers draw for themselves")
        tensors = list(inputs)
        return self._model(tensors[0] if len(tensors) == 1 else tensors, training=training)


class PreparedModel:
    """Calls like the Keras model; random layers take from `random`.

    `random_values` is how many uniforms one example of a training pass takes;
    `drawn_inside` names the ops that draw for themselves, which `prepare_model` refuses.
    """

    def __init__(self, model: tf.keras.Model):
        self.random = RandomSource()
        self._model = model
        self._layers = LayerGraph(model, self.random)
        self.drawn_inside = [op.name for op in self._ops_of_training() if "Random" in op.type]
        self.random_values = self.random.taken

    def __call__(
        self, inputs: Sequence[tf.Tensor], *, training: bool, random: tf.Tensor | None = None
    ) -> Any:
        """The model's prediction, float32 [B, ...].

        Args:
          inputs: tensors in the order of the model's inputs, [B, ...] each.
          training: whether random layers are active.
          random: uniforms in [0, 1), float32 [B, random_values]; only needed in
            training, and only when `random_values` > 0.
        """
        if training and self.random_values and random is None:
            raise ValueError(f"{self._model.name}: random layers need `random` in training")
        return self._forward(inputs, training=training, random=random)

    def _forward(
        self, inputs: Sequence[tf.Tensor], *, training: bool, random: tf.Tensor | None
    ) -> Any:
        with self.random.fed(random), ops_as_converted(), functions_inlined():
            return self._layers.run(list(inputs), training=training)

    def _ops_of_training(self) -> list[Any]:
        def forward(*inputs: tf.Tensor) -> tf.Tensor:
            return self._forward(inputs, training=True, random=None)

        specs = [tf.TensorSpec([1, *t.shape[1:]], t.dtype) for t in self._model.inputs]
        try:
            traced = tf.function(forward, autograph=False).get_concrete_function(*specs)
        except DpflError:
            raise
        except Exception as error:  # of a layer's own code
            raise ModelError(
                f"{self._model.name}: can not be traced as a graph: {first_line(error)}; decide "
                "with tf.where instead of if, and loop over a Python range"
            ) from error
        ops: list[Any] = traced.graph.get_operations()
        return ops
