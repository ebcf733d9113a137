"""The interface of a task, read off a Keras model and the plan's loss."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.interface import (
    DTYPES,
    FLOAT32,
    INT32,
    TARGET,
    ExampleInterface,
    ExampleTensor,
    input_names,
)
from tf_dpfl.protocol.plan import LocalTraining


def interface_of(
    model: tf.keras.Model, local_training: LocalTraining, *, random_values: int = 0
) -> ExampleInterface:
    """Inputs, target and prediction of `model` under the plan's loss.

    Args:
      model: a Sequential or functional Keras model with one output.
      local_training: names the loss, and with it what the target holds.
      random_values: uniforms that one example of a training batch consumes.

    Raises:
      ModelError: with every fault: several outputs, an input that is neither
        float32 nor int32, a size that is not fixed, an output that does not fit
        the loss.
    """
    faults: list[str] = []
    inputs = _inputs(model, faults)
    output = _output_shape(model, local_training, faults)
    _refuse(model, faults)
    if local_training.targets_are_class_ids:
        target = ExampleTensor(TARGET, INT32, output[:-1])
    else:
        target = ExampleTensor(TARGET, FLOAT32, output)
    return ExampleInterface(inputs, target, output, random_values)


def inputs_of(model: tf.keras.Model) -> tuple[ExampleTensor, ...]:
    """The inputs of `model`; ModelError names every one that can not be fed."""
    faults: list[str] = []
    inputs = _inputs(model, faults)
    _refuse(model, faults)
    return inputs


def _refuse(model: tf.keras.Model, faults: list[str]) -> None:
    if faults:
        raise ModelError([f"{model.name}: {fault}" for fault in faults])


def _inputs(model: tf.keras.Model, faults: list[str]) -> tuple[ExampleTensor, ...]:
    tensors = list(model.inputs or [])
    names = input_names(model.input_names or ())
    if not tensors:
        faults.append("the model declares no inputs; build it, or give its first layer a shape")
    return tuple(_input(name, tensor, faults) for name, tensor in zip(names, tensors))


def _input(name: str, tensor: Any, faults: list[str]) -> ExampleTensor:
    shape = tuple(tensor.shape)
    dtype = tensor.dtype.name
    if dtype not in DTYPES or None in shape[1:] or shape[:1] != (None,):
        faults.append(
            f"input {tensor.name!r} is {dtype} of shape {shape}; it must be "
            f"{' or '.join(DTYPES)} of shape (None, ...) with fixed sizes; give them in "
            "tf.keras.Input(shape, dtype=...)"
        )
        return ExampleTensor(name, FLOAT32, ())
    return ExampleTensor(name, dtype, shape[1:])


def _output_shape(
    model: tf.keras.Model, local_training: LocalTraining, faults: list[str]
) -> tuple[int, ...]:
    outputs = list(model.outputs or [])
    if len(outputs) != 1:
        faults.append(f"has {len(outputs)} outputs; a task has one prediction")
        return ()
    shape = tuple(outputs[0].shape)
    if outputs[0].dtype != tf.float32 or None in shape[1:] or len(shape) < 2:
        faults.append(
            f"its output is {outputs[0].dtype.name} of shape {shape}; it must be float32 of "
            "shape (None, n), or of more fixed sizes: (None, 1) for one value an example"
        )
        return ()
    categorical = local_training.targets_are_class_ids or (
        local_training.loss == "categorical_crossentropy"
    )
    if categorical and shape[-1] < 2:
        faults.append(
            f"has an output of shape {shape} and loss={local_training.loss!r}, which needs one "
            'output a class; for one yes-or-no output use "binary_crossentropy"'
        )
    return shape[1:]
