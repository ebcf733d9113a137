"""Running a Keras model's graph of layers with replacements."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras.src.engine.functional import Functional

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import replaced, replacement_of


class LayerGraph:
    """The nodes of a Sequential or functional `model`, each calling a replaced layer."""

    def __init__(self, model: Any, source: RandomSource):
        self._model, self._source = model, source
        self._layers: dict[int, Any] = {}

    def run(self, inputs: list[Any], *, training: bool) -> Any:
        """What Keras' `Functional.call` computes of `inputs`, in the model's structure."""
        return self._run(self._model, inputs, training=training)

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
            self._layers[id(layer)] = replaced(layer, self._source)
        if layer._expects_training_arg:
            keywords = {**keywords, "training": active}
        return self._layers[id(layer)](*arguments, **keywords)


class _NestedModel(tf.keras.layers.Layer):
    """A model where only another layer calls it (TimeDistributed)."""

    def __init__(self, original: Any, source: RandomSource):
        super().__init__(name=original.name)
        self._original = original
        self._graph = LayerGraph(original, source)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """What the original computes, by replaced layers."""
        return self._graph.run(tf.nest.flatten(inputs), training=training)


@replacement_of(Functional)
def _replace_model(model: Any, source: RandomSource) -> Any:
    # A subclass may have a `call` of its own.
    return _NestedModel(model, source) if model._is_graph_network else model
