"""Whether a model takes a task's examples and answers with its logits."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras.src.engine.functional import Functional

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.imports import first_line

_CALLS_OF_KERAS = (Functional.call, tf.keras.Sequential.call)


def check_shapes(
    model: tf.keras.Model, *, input_shape: tuple[int, ...], classes: int, name: str = "model"
) -> None:
    """Runs `model` on two examples of zeros; a model not built yet is built by it.

    Args:
      model: a Keras model of one input and one output.
      input_shape: shape of one example.
      classes: number of classes.
      name: how errors call the model.

    Raises:
      ModelError: the model takes another shape, fails, or does not answer with
        logits of shape [n, classes].
    """
    declared = _declared_input_shape(model)
    if declared is not None and not _fits(declared, input_shape):
        raise ModelError(
            f"{name}: takes examples of shape {list(declared)}, the data's are "
            f"{list(input_shape)}; build it with the data's input_shape"
        )
    try:
        if isinstance(model, tf.keras.Sequential) and not model.built:
            model.build([None, *input_shape])  # a call would fix the batch size to its own
        logits = model(tf.zeros([2, *input_shape]), training=False)
    except Exception as error:  # user code may raise anything
        raise ModelError(
            f"{name}: fails on examples of shape {list(input_shape)}: {first_line(error)}"
        ) from error
    shape = logits.shape if isinstance(logits, tf.Tensor) else None
    if shape is None or shape.rank != 2 or shape[0] != 2:
        got = f"an output of shape {shape}" if shape is not None else type(logits).__name__
        raise ModelError(
            f"{name}: two examples give {got}; it must give one tensor of logits [n, {classes}]"
        )
    if shape[1] != classes:
        raise ModelError(
            f"{name}: gives {shape[1]} logits an example, the data have {classes} classes"
        )


def require_declared_input(model: tf.keras.Model) -> None:
    """Raises ModelError unless `model` is Sequential or functional.

    A subclassed model says neither what it takes nor how a file could hold it.
    """
    if not getattr(model, "inputs", None) or not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"{model.name} ({type(model).__name__}): must be a tf.keras.Sequential or functional "
            "tf.keras.Model(inputs, outputs); only these can be trained, saved and exported "
            "without their Python code"
        )
    if type(model).call not in _CALLS_OF_KERAS:
        raise ModelError(
            f"{model.name} ({type(model).__name__}): has a call of its own beside its layers; put "
            "what it does into a layer"
        )


def _declared_input_shape(model: Any) -> tuple[int | None, ...] | None:
    """The example shape that a built Functional or Sequential model declares."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    if len(inputs) != 1:
        raise ModelError(f"{model.name}: has {len(inputs)} inputs; a task has one")
    shape = inputs[0].shape
    return tuple(shape[1:]) if shape.rank is not None else None


def _fits(declared: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    return len(declared) == len(given) and all(
        size is None or size == wanted for size, wanted in zip(declared, given)
    )
