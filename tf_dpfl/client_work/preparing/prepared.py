"""Running a Keras model's graph of layers with replacements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import replaced
from tf_dpfl.protocol.errors import ModelError


def prepare_model(model: tf.keras.Model) -> PreparedModel:
    """`model` with its layers replaced where a device could not run them.

    Args:
      model: a built Sequential or functional Keras model; it stays as it is, and
        its variables are the prepared model's.
    """
    return PreparedModel(model)


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

    `random_values` is how many uniforms one example of a training pass takes.
    """

    def __init__(self, model: tf.keras.Model):
        self.random = RandomSource()
        self._model = model
        self._layers: dict[int, Any] = {}
        self.random_values = self._count_random_values()

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
        with self.random.fed(random):
            return self._run(self._model, list(inputs), training=training)

    def _run(self, model: Any, inputs: list[Any], *, training: bool) -> Any:
        """What `Functional.call` does, with `_call` for each node's layer."""
        computed: dict[str, list[Any]] = {}
        uses = model._tensor_usage_count
        for reference, value in zip(model.inputs, inputs):
            value = model._conform_to_reference_input(value, ref_input=reference)
            computed[str(id(reference))] = [value] * uses[str(id(reference))]
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                arguments, keywords = node.map_arguments(computed)
                outputs = self._call(node.layer, arguments, keywords, training=training)
                for key, value in zip(node.flat_output_ids, tf.nest.flatten(outputs)):
                    computed[key] = [value] * uses[key]
        results = [computed[str(id(reference))].pop() for reference in model.outputs]
        return tf.nest.pack_sequence_as(model._nested_outputs, results)

    def _call(self, layer: Any, arguments: Any, keywords: Any, *, training: bool) -> Any:
        active = keywords.get("training")
        active = training if active is None else active
        if getattr(layer, "_is_graph_network", False):
            with tf.name_scope(layer.name):
                return self._run(layer, tf.nest.flatten(arguments[0]), training=active)
        if id(layer) not in self._layers:
            self._layers[id(layer)] = replaced(layer, self.random)
        if layer._expects_training_arg:
            keywords = {**keywords, "training": active}
        return self._layers[id(layer)](*arguments, **keywords)

    def _count_random_values(self) -> int:
        def count(*inputs: tf.Tensor) -> tf.Tensor:
            return self._forward(inputs, training=True, random=None)

        specs = [tf.TensorSpec([1, *t.shape[1:]], t.dtype) for t in self._model.inputs]
        traced = tf.function(count, autograph=False).get_concrete_function(*specs)
        drawn = [op.name for op in traced.graph.get_operations() if "Random" in op.type]
        if drawn:
            raise ModelError(
                f"{self._model.name}: draws random numbers inside of a layer that is not Keras' "
                f"own ({', '.join(drawn)[:200]}), where they can not be fed from outside; use "
                "Dropout or GaussianNoise as layers of the model itself"
            )
        return self.random.taken
