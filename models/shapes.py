"""Whether a model takes a task's examples and answers with its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from keras.src.engine.functional import Functional

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.imports import first_line
from tf_dpfl.protocol.interface import INPUT, input_names

_CALLS_OF_KERAS = (Functional.call, tf.keras.Sequential.call)

Shape = tuple[int, ...]


def check_shapes(
    model: tf.keras.Model,
    *,
    input_shape: Shape | Mapping[str, Shape],
    classes: int,
    positions: Shape = (),
    name: str = "model",
) -> None:
    """Runs `model` on two examples of zeros; a model not built yet is built by it.

    Args:
      model: a Keras model with one output.
      input_shape: shape of one example; where a model has several inputs, of each, by
        the name of its array ("x_<name>").
      classes: number of classes, or of values.
      positions: sizes in front of the classes, of models that predict at every step.
      name: how errors call the model.

    Raises:
      ModelError: the model takes another shape, fails, or does not answer with one
        tensor of shape [n, *positions, classes].
    """
    shapes = input_shape if isinstance(input_shape, Mapping) else {INPUT: input_shape}
    declared = _declared_inputs(model)
    if declared is not None:
        _require_inputs(declared, shapes, name=name)
    try:
        output = _output_of_zeros(model, declared, shapes)
    except Exception as error:  # user code may raise anything
        raise ModelError(
            f"{name}: fails on examples of shape {_listed(shapes)}: {first_line(error)}"
        ) from error
    wanted = f"[n, {', '.join(map(str, (*positions, classes)))}]"
    shape = output.shape if isinstance(output, tf.Tensor) else None
    if shape is None or shape.rank != 2 + len(positions) or shape[:-1] != (2, *positions):
        got = f"an output of shape {shape}" if shape is not None else type(output).__name__
        raise ModelError(
            f"{name}: two examples give {got}; it must give one tensor of logits {wanted}"
        )
    if shape[-1] != classes:
        raise ModelError(
            f"{name}: gives {shape[-1]} logits an example, the data have {classes} classes"
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


def _declared_inputs(model: Any) -> dict[str, tf.TensorSpec] | None:
    """The inputs that a built Functional or Sequential model declares, in its order."""
    tensors = getattr(model, "inputs", None)
    if not tensors or any(tensor.shape.rank is None for tensor in tensors):
        return None
    return {
        name: tf.TensorSpec(tensor.shape, tensor.dtype)
        for name, tensor in zip(input_names(model.input_names), tensors)
    }


def _require_inputs(
    declared: Mapping[str, tf.TensorSpec], given: Mapping[str, Shape], *, name: str
) -> None:
    if sorted(declared) != sorted(given):
        raise ModelError(
            f"{name}: has the inputs {sorted(declared)}, the data's arrays are {sorted(given)}; "
            "an array of a model with several inputs is called x_ and the input's name"
        )
    for key, spec in declared.items():
        if not _fits(tuple(spec.shape[1:]), given[key]):
            of_input = f" in {key}" if len(declared) > 1 else ""
            raise ModelError(
                f"{name}: takes examples of shape {list(spec.shape[1:])}{of_input}, the data's "
                f"are {list(given[key])}; build it with the data's input_shape"
            )


def _output_of_zeros(
    model: Any, declared: Mapping[str, tf.TensorSpec] | None, shapes: Mapping[str, Shape]
) -> Any:
    """What `model` gives for two examples of zeros."""
    if declared is not None:
        # An open side is as long as the data's.
        zeros = [
            tf.zeros([2, *(shapes[key] if None in spec.shape[1:] else spec.shape[1:])], spec.dtype)
            for key, spec in declared.items()
        ]
        return model(zeros[0] if len(zeros) == 1 else zeros, training=False)
    (shape,) = shapes.values()
    if isinstance(model, tf.keras.Sequential) and not model.built:
        model.build([None, *shape])  # a call would fix the batch size to its own
    return model(tf.zeros([2, *shape]), training=False)


def _fits(declared: tuple[int | None, ...], given: Shape) -> bool:
    """As files are read: one number an example is an array [n], too."""
    return (declared == (1,) and given == ()) or (
        len(declared) == len(given)
        and all(size is None or size == wanted for size, wanted in zip(declared, given))
    )


def _listed(shapes: Mapping[str, Shape]) -> Any:
    if list(shapes) == [INPUT]:
        return list(shapes[INPUT])
    return {name: list(shape) for name, shape in shapes.items()}
