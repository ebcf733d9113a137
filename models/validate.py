"""Which layers of a model DP can not take, why, and what to use instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from keras.src.engine.base_layer import BaseRandomLayer

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.imports import first_line

_LAYERS = tf.keras.layers

# Operations that write a variable. Reading is "ReadVariableOp".
_WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatter")
_RANDOM = ("Random", "StatelessRandom", "Stateful", "Multinomial", "ParameterizedTruncated")

_ANY_BATCH = tf.TensorSpec([None])


def validate_model(model: tf.keras.Model) -> None:
    """Raises ModelError with every fault, one line each; returns when there is none.

    Refused are:
      * layers that mix the examples of a batch (batch normalisation, or anything
        else by which one example changes another one's logits);
      * layers that keep state from batch to batch, and every variable that
        training changes without being trainable: it would leave the device
        unclipped and without noise, or be lost;
      * random layers: not yet supported on devices;
      * losses that the model adds itself: the local loss is cross-entropy alone;
      * an end in softmax: the loss is taken of logits;
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
        for path, layer in _walk(model)
        for fault in _layer_faults(layer)
    ]
    if not model.trainable_weights:
        faults.append(f"{model.name}: has no trainable weights; there is nothing to learn")
    # What the layers' kinds do not tell is looked for in what the model computes.
    faults += _computed_faults(model, known=tuple(faults))
    if faults:
        raise ModelError(faults)


def _walk(layer: Any, path: tuple[str, ...] = (), seen: set[int] | None = None) -> Iterator[Any]:
    """Path and layer of everything below `layer`; a shared layer comes once."""
    seen = set() if seen is None else seen
    for child in layer._flatten_layers(recursive=False, include_self=False):
        if id(child) in seen:
            continue
        seen.add(id(child))
        here = (*path, child.name)
        yield "/".join(here), child
        yield from _walk(child, here, seen)


def _layer_faults(layer: Any) -> Iterator[str]:
    """What is wrong with this layer itself, not with those inside it."""
    inner = list(layer._flatten_layers(recursive=False, include_self=False))
    if _is_batch_normalization(layer):
        yield (
            "mixes the examples of a batch and keeps their statistics, which no clipping "
            "bounds; use GroupNormalization or LayerNormalization (in simulation: this release "
            "does not export them to devices yet) or none"
        )
    # Containers and wrappers report what their parts do.
    if getattr(layer, "stateful", False) and not any(
        getattr(child, "stateful", False) for child in inner
    ):
        yield "carries state from one batch to the next; use stateful=False"
    if _is_random(layer) and not any(_is_random(child) for child in inner):
        yield (
            "draws random numbers, which is not yet supported on devices; remove it "
            "(clipping and noise already regularise)"
        )
    for name, value in sorted(vars(layer).items()):
        if name.lstrip("_").endswith("_regularizer") and callable(value):
            yield (
                f"{name.lstrip('_')} adds a loss of its own, the local loss is cross-entropy "
                "alone; remove it"
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
    """Faults seen in the graph of one training step and in the logits of two examples."""
    shape = _example_shape(model)
    if shape is None:
        return
    if (getattr(model, "inputs", None) or [_ANY_BATCH])[0].shape[0] is not None:
        yield (
            f"{model.name}: takes batches of one fixed size; leave it open (tf.keras.Input(shape))"
        )
        return
    spec = tf.TensorSpec([2, *shape], tf.float32)
    try:
        step = tf.function(lambda x: model(x, training=True)).get_concrete_function(spec)
    except Exception as error:  # user code may raise anything
        yield f"{model.name}: can not be traced as a graph: {first_line(error)}"
        return
    if not isinstance(step.structured_outputs, tf.Tensor):
        yield f"{model.name}: must have one output, the logits"
        return
    operations = _operations(step.graph)
    if any(name.startswith(_WRITES) for name in operations) and not _said(
        known, "BatchNormalization", "state from one batch"
    ):
        changed = ", ".join(v.name for v in model.non_trainable_variables) or "a variable"
        yield (
            f"{model.name}: training changes variables that are not trained ({changed}); "
            "they would not reach the server: remove them"
        )
    random = any(name.startswith(_RANDOM) for name in operations)
    if random and not _said(known, "draws random"):
        yield (
            f"{model.name}: draws random numbers while it trains, which is not yet supported "
            "on devices; remove that"
        )
    if model.losses and not _said(known, "adds a loss"):
        yield (
            f"{model.name}: adds a loss of its own (add_loss); the local loss is cross-entropy "
            "alone: remove it"
        )
    end = _end(step.outputs[0].op)
    if end.type == "Softmax":
        yield (
            f"{model.name}: ends in softmax ({end.name}); it must end in logits: remove the "
            "last activation"
        )
    # Random logits differ from call to call, whatever the other examples are.
    if not random and not _said(known, "mixes the examples") and _mixes_examples(model, shape):
        yield (
            f"{model.name}: one example changes another one's logits; every layer must treat "
            "the examples of a batch apart"
        )


def _said(known: tuple[str, ...], *words: str) -> bool:
    return any(word in fault for fault in known for word in words)


def _example_shape(model: Any) -> tuple[int, ...] | None:
    """Shape of one example, or None when the model does not tell (open sides are 8)."""
    inputs = getattr(model, "inputs", None)
    if inputs and len(inputs) == 1 and inputs[0].shape.rank is not None:
        return tuple(8 if size is None else size for size in inputs[0].shape[1:])
    built = getattr(model, "_build_input_shape", None)
    if isinstance(built, (tuple, list, tf.TensorShape)):
        sizes = tf.TensorShape(built).as_list()[1:]
        return tuple(8 if size is None else size for size in sizes)
    return None


def _operations(graph: Any) -> set[str]:
    """The kinds of all operations of a graph and of the functions it calls."""
    definition = graph.as_graph_def()
    nodes = [node.op for node in definition.node]
    for function in definition.library.function:
        nodes += [node.op for node in function.node_def]
    return set(nodes)


def _end(operation: Any) -> Any:
    while operation.type in ("Identity", "Cast", "Reshape") and operation.inputs:
        operation = operation.inputs[0].op
    return operation


def _mixes_examples(model: Any, shape: tuple[int, ...]) -> bool:
    """Whether the first example's logits depend on the second example."""
    first, second, other = tf.random.stateless_uniform([3, *shape], seed=[1, 2])[:, None]
    logits = [
        model(tf.concat([first, neighbour], axis=0), training=False)[0].numpy()
        for neighbour in (second, 1.0 - other)
    ]
    scale = max(1.0, float(abs(logits[0]).max()))
    # Reordered sums differ in the last bits; a mean over the batch by much more.
    return not float(abs(logits[0] - logits[1]).max()) <= 1e-4 * scale
