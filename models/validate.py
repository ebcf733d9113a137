"""Which layers of a model DP can not take, why, and what to use instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from keras.src.engine.base_layer import BaseRandomLayer

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.imports import first_line

_LAYERS = tf.keras.layers

# Operations that write a variable. Reading is "ReadVariableOp".
_WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatter")
_RANDOM = (
    "Random",
    "StatelessRandom",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
    "Multinomial",
    "ParameterizedTruncated",
)

# These take their randomness from outside when the model is prepared.
_FED = (
    _LAYERS.Dropout,
    _LAYERS.AlphaDropout,
    _LAYERS.GaussianDropout,
    _LAYERS.GaussianNoise,
    _LAYERS.Attention,
    _LAYERS.AdditiveAttention,
    _LAYERS.SimpleRNNCell,
    _LAYERS.LSTMCell,
    _LAYERS.GRUCell,
    _LAYERS.LSTM,  # which draws for its cell
    _LAYERS.GRU,
)
_USE_FED_LAYERS = (
    "use Dropout, SpatialDropout, AlphaDropout, GaussianDropout or GaussianNoise as layers of "
    "their own, or remove it"
)

# Keras appends this when one layer is called more than once.
_REPEATED = re.compile(r"_\d+$")

# A mask of Dropout for a few units is now and then the same twice.
_TRIES_OF_CHANCE = 16

_ANY_BATCH = tf.TensorSpec([None])


def validate_model(model: tf.keras.Model) -> None:
    """Raises ModelError with every fault, one line each; returns when there is none.

    Refused are:
      * layers that mix the examples of a batch (batch normalisation, or anything
        else by which one example changes another one's logits);
      * layers that keep state from batch to batch, and every variable that
        training changes without being trainable: it would leave the device
        unclipped and without noise, or be lost;
      * random operations outside of the Dropout family and GaussianNoise, which
        alone take their randomness from outside;
      * losses that the model adds itself: the local loss is the plan's alone;
      * weights or arithmetic other than float32;
      * a model that is not built, or has no trainable weights.

    A layer is named by its path through nested models ("encoder/block/bn").
    """
    if not getattr(model, "built", False):
        raise ModelError(
            f"{model.name}: has no weights yet; give it a tf.keras.Input or call it once"
        )
    faults = [
        f"layer {path} ({type(layer).__name__}): {fault}"
        for path, layer in walk_layers(model)
        for fault in _layer_faults(layer)
    ]
    if not model.trainable_weights:
        faults.append(f"{model.name}: has no trainable weights; there is nothing to learn")
    # What the layers' kinds do not tell is looked for in what the model computes.
    faults += _computed_faults(model, known=tuple(faults))
    if faults:
        raise ModelError(faults)


def walk_layers(
    layer: Any, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[Any]:
    """Path and layer of everything below `layer`; a shared layer comes once."""
    seen = set() if seen is None else seen
    for child in layer._flatten_layers(recursive=False, include_self=False):
        if id(child) in seen:
            continue
        seen.add(id(child))
        here = (*path, child.name)
        yield "/".join(here), child
        yield from walk_layers(child, here, seen)


def _layer_faults(layer: Any) -> Iterator[str]:
    """What is wrong with this layer itself, not with those inside it."""
    inner = list(layer._flatten_layers(recursive=False, include_self=False))
    if _is_batch_normalization(layer) and layer.trainable:
        yield (
            "mixes the examples of a batch and keeps their statistics, which no clipping "
            "bounds; use GroupNormalization or LayerNormalization, or freeze it "
            "(trainable=False)"
        )
    if isinstance(layer, _LAYERS.SpectralNormalization) and layer.trainable:
        yield (
            "normalises its weights by a vector that training changes, which would not reach the "
            f"server; use the {type(layer.layer).__name__} inside alone, and LayerNormalization "
            "behind it"
        )
    # Containers and wrappers report what their parts do.
    if getattr(layer, "stateful", False) and not any(
        getattr(child, "stateful", False) for child in inner
    ):
        yield "carries state from one batch to the next; use stateful=False"
    random_parts = any(_is_random(child) for child in inner)
    if _is_random(layer) and not isinstance(layer, _FED) and not random_parts:
        yield f"draws random numbers in a way that can not be fed from outside; {_USE_FED_LAYERS}"
    for name, value in sorted(vars(layer).items()):
        if name.lstrip("_").endswith("_regularizer") and callable(value):
            yield (
                f"{name.lstrip('_')} adds a loss of its own, the local loss is the plan's "
                "alone; remove it"
            )
    constrained = [w.name for w in layer._trainable_weights if _constraint(w) is not None]
    if constrained:
        yield (
            f"constrains its weights ({', '.join(constrained)}) after every step, which neither "
            "devices nor noise would keep to; remove the constraint"
        )
    dtypes = {w.dtype.name for w in layer._trainable_weights if w.dtype != tf.float32}
    computes = layer.compute_dtype
    if layer._trainable_weights and computes not in ("float32", None):
        dtypes.add(str(computes))
    if dtypes:
        yield (
            f"has weights or arithmetic in {', '.join(sorted(dtypes))}; updates are float32: "
            'use dtype="float32" and no mixed precision'
        )


def _constraint(weight: Any) -> Any:
    return getattr(weight, "constraint", None)


def _is_batch_normalization(layer: Any) -> bool:
    # SyncBatchNormalization is a subclass or a sibling, by Keras' version.
    return isinstance(layer, _LAYERS.BatchNormalization) or any(
        "BatchNormalization" in base.__name__ for base in type(layer).__mro__
    )


def _is_random(layer: Any) -> bool:
    if not isinstance(layer, BaseRandomLayer):
        return False
    strengths = [
        getattr(layer, name)
        for name in ("rate", "stddev", "dropout", "recurrent_dropout")
        if isinstance(getattr(layer, name, None), (int, float))
    ]
    # A rate of zero draws nothing; what has no rate at all is an augmentation.
    return any(strengths) if strengths else True


def _computed_faults(model: Any, *, known: tuple[str, ...]) -> Iterator[str]:
    """Faults seen in the graph of one training step and in the predictions for two examples."""
    specs = _example_specs(model)
    if specs is None:
        return
    if (getattr(model, "inputs", None) or [_ANY_BATCH])[0].shape[0] is not None:
        yield (
            f"{model.name}: takes batches of one fixed size; leave it open (tf.keras.Input(shape))"
        )
        return
    if _said(known, "normalises its weights"):
        return  # it asks for a Python bool and fails in a graph
    try:
        step = tf.function(lambda *x: _called(model, x, training=True))
        graph_of_step = step.get_concrete_function(*specs)
    except Exception as error:  # user code may raise anything
        yield f"{model.name}: can not be traced as a graph: {first_line(error)}"
        return
    if not isinstance(graph_of_step.structured_outputs, tf.Tensor):
        yield f"{model.name}: must have one output, the prediction"
        return
    nodes = _nodes(graph_of_step.graph)
    if any(node.op.startswith(_WRITES) for node in nodes) and not _said(
        known, "BatchNormalization", "state from one batch"
    ):
        changed = ", ".join(v.name for v in model.non_trainable_variables) or "a variable"
        yield (
            f"{model.name}: training changes variables that are not trained ({changed}); "
            "they would not reach the server: remove them"
        )
    random = _unfed_randomness(model, nodes)
    if not _said(known, "draws random"):
        for place in dict.fromkeys(_place_of(model, name) for name in random):
            yield (
                f"{place}: draws random numbers while it trains, in a way that can not be fed from "
                f"outside; {_USE_FED_LAYERS}"
            )
    if model.losses and not _said(known, "adds a loss"):
        yield (
            f"{model.name}: adds a loss of its own (add_loss); the local loss is the plan's "
            "alone: remove it"
        )
    # Random predictions differ from call to call, whatever the other examples are.
    if random or _said(known, "mixes the examples"):
        return
    try:
        mixed = _differ(model, specs, neighbours=(1, 2))
        redrawn = mixed and any(
            _differ(model, specs, neighbours=(1, 1)) for _ in range(_TRIES_OF_CHANCE)
        )
    except Exception as error:  # of the model's own code, or of TensorFlow
        yield f"{model.name}: fails on two examples: {first_line(error)}"
        return
    if redrawn:
        yield (
            f"{model.name}: draws random numbers for predictions, too; do not call its random "
            "layers with training=True"
        )
    elif mixed:
        yield (
            f"{_first_that_mixes(model, specs)}: one example changes another one's logits; every "
            "layer must treat the examples of a batch apart"
        )


def _said(known: tuple[str, ...], *words: str) -> bool:
    return any(word in fault for fault in known for word in words)


def _called(model: Any, inputs: Sequence[Any], *, training: bool) -> Any:
    return model(inputs[0] if len(inputs) == 1 else list(inputs), training=training)


def _example_specs(model: Any) -> list[tf.TensorSpec] | None:
    """Specs of two examples, or None when the model does not tell (open sides are 8)."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        if any(tensor.shape.rank is None for tensor in inputs):
            return None
        shapes = [(tensor.shape.as_list()[1:], tensor.dtype) for tensor in inputs]
    else:
        built = getattr(model, "_build_input_shape", None)
        if not isinstance(built, (tuple, list, tf.TensorShape)):
            return None
        shapes = [(tf.TensorShape(built).as_list()[1:], tf.float32)]
    return [
        tf.TensorSpec([2, *(8 if size is None else size for size in shape)], dtype)
        for shape, dtype in shapes
    ]


def _nodes(graph: Any) -> list[Any]:
    """All operations of a graph and of the functions it calls."""
    definition = graph.as_graph_def()
    nodes = list(definition.node)
    for function in definition.library.function:
        nodes += function.node_def
    return nodes


def _unfed_randomness(model: Any, nodes: Sequence[Any]) -> list[str]:
    """The names of random operations outside of the layers that are fed from outside."""
    fed = {layer.name for _, layer in walk_layers(model) if isinstance(layer, _FED)}
    return [
        node.name
        for node in nodes
        if node.op.startswith(_RANDOM) and not fed & _names_of_layers(node.name)
    ]


def _place_of(model: Any, node: str) -> str:
    """The innermost layer that the name of a node tells; the model where it tells none."""
    names = _names_of_layers(node)
    inside = [(path, layer) for path, layer in walk_layers(model) if layer.name in names]
    if not inside:
        return str(model.name)
    path, layer = max(inside, key=lambda found: found[0].count("/"))
    return f"layer {path} ({type(layer).__name__})"


def _names_of_layers(node: str) -> set[str]:
    """The scopes of a node, with and without the number of a repeated call."""
    scopes = node.split("/")
    return {*scopes, *(_REPEATED.sub("", scope) for scope in scopes)}


def _differ(model: Any, specs: Sequence[tf.TensorSpec], *, neighbours: tuple[int, int]) -> bool:
    """Whether the first example's prediction is another beside another second example."""
    draws = [_draws(spec) for spec in specs]
    predictions = [
        _called(model, [tf.stack([d[0], d[neighbour]]) for d in draws], training=False)[0].numpy()
        for neighbour in neighbours
    ]
    scale = max(1.0, float(abs(predictions[0]).max()))
    # Reordered sums differ in the last bits; a mean over the batch by much more.
    return not float(abs(predictions[0] - predictions[1]).max()) <= 1e-4 * scale


def _first_that_mixes(model: Any, specs: Sequence[tf.TensorSpec]) -> str:
    """The first layer behind which examples are mixed; the model where it is in none alone."""
    for layer in getattr(model, "layers", ()):
        try:
            up_to_here = tf.keras.Model(model.inputs, layer.output)
            mixed = _differ(up_to_here, specs, neighbours=(1, 2))
        except (
            Exception
        ):  # called more than once, with several outputs, or not in a graph of layers
            continue
        if mixed:
            return f"layer {layer.name} ({type(layer).__name__})"
    return str(model.name)


def _draws(spec: tf.TensorSpec) -> tf.Tensor:
    """Three different examples; ids are 0 and 1, which every table of ids has."""
    uniform = tf.random.stateless_uniform([3, *spec.shape[1:]], seed=[1, 2])
    return uniform if spec.dtype.is_floating else tf.cast(uniform > 0.5, spec.dtype)
