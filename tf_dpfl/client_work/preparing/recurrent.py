"""Recurrent layers, step by step in the graph instead of in a loop."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.activations import portable
from tf_dpfl.client_work.preparing.noise_layers import FedGenerator
from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import changed_copy, replaced, replacement_of

_LAYERS = tf.keras.layers


@replacement_of(_LAYERS.RNN)
def _unrolled(layer: Any, source: RandomSource) -> Any:
    """The same layer and cell, unrolled; fused kernels have no TFLite builtin."""
    attributes = {"unroll": True, "cell": replaced(layer.cell, source)}
    if hasattr(layer, "_could_use_gpu_kernel"):
        attributes["_could_use_gpu_kernel"] = False
    if not (layer.go_backwards and layer.zero_output_for_mask):
        return changed_copy(layer, **attributes)
    twin = changed_copy(layer, **attributes, go_backwards=False)
    twin.__class__ = type("_Backwards", (_Backwards, type(layer)), {})
    return twin


class _Backwards:
    """Goes backwards by turning steps and mask round.

    Unrolled, Keras' own way zeroes the outputs, last step first, by the mask from
    its first step on.
    """

    def call(self, inputs: Any, mask: Any = None, **keywords: Any) -> Any:
        """What the layer gives for `inputs` from the last step to the first."""
        axis = [0 if getattr(self, "time_major", False) else 1]
        if mask is not None:
            mask = tf.reverse(mask, axis)
        turned = tf.reverse(inputs, axis)
        return super().call(turned, mask=mask, **keywords)  # type: ignore[misc]


@replacement_of(_LAYERS.SimpleRNNCell, _LAYERS.LSTMCell, _LAYERS.GRUCell)
def _portable_cell(cell: Any, source: RandomSource) -> Any:
    changed = {
        name: portable(getattr(cell, name))
        for name in ("activation", "recurrent_activation")
        if hasattr(cell, name)
    }
    if cell.dropout or cell.recurrent_dropout:
        changed["_random_generator"] = FedGenerator(source)
    if all(getattr(cell, name) is value for name, value in changed.items()):
        return cell
    return changed_copy(cell, **changed)


@replacement_of(_LAYERS.StackedRNNCells)
def _portable_cells(stack: Any, source: RandomSource) -> Any:
    return changed_copy(stack, cells=[replaced(cell, source) for cell in stack.cells])


@replacement_of(_LAYERS.Bidirectional)
def _both_directions(layer: Any, source: RandomSource) -> Any:
    return changed_copy(
        layer,
        forward_layer=replaced(layer.forward_layer, source),
        backward_layer=replaced(layer.backward_layer, source),
    )
