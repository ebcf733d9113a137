"""Keras models made ready for every runtime: same variables, portable ops.

Some layers run in ways that a device's interpreter has not: recurrent layers as
loops over fused kernels, Dropout with TensorFlow's random ops, activations
without a TFLite builtin. `prepare_model` runs the model's own graph of layers and
calls, in their place, equal layers over the same variables. The Keras model is
not changed.

To prepare one more layer: write a function under `@replacement_of(LayerClass)` in
the file of its family, and a case to `tests/client_work/test_preparing.py`.
"""

from tf_dpfl.client_work.preparing import (  # noqa: F401  importing a family registers it
    activations,
    attention,
    convolutions,
    layer_graph,
    noise_layers,
    normalization,
    own_layers,
    recurrent,
    wrappers,
)
from tf_dpfl.client_work.preparing.prepared import KerasModel, PreparedModel, prepare_model
from tf_dpfl.client_work.preparing.randomness import RandomSource

__all__ = ["KerasModel", "PreparedModel", "RandomSource", "prepare_model"]
