"""Building `client.tflite`: the client computation as TFLite signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.export.convert import convert
from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.export.gradients.rules import UnsupportedOpError
from tf_dpfl.export.layers import layer_of_op, refuse_ops_without_gradient
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.plan import Plan


def build_client_tflite(model: tf.keras.Model, plan: Plan) -> bytes:
    """The content of `client.tflite`, made of TFLite builtin ops only.

    The file is not checked here: `verify.verify_client_tflite` does that.

    Args:
      model: a built Keras model of one float32 input that ends in logits; its
        weights are not changed.
      plan: `local_training` gives batch size and optimizer.

    Raises:
      ExportError: names each layer and op that has no gradient rule or no
        TFLite builtin.
    """
    check_interface(model)
    rules = op_gradients()
    refuse_ops_without_gradient(model, rules)
    computation = ClientComputation(model, plan.local_training, op_gradients=rules)
    try:
        functions = _signatures(
            computation,
            input_shape=tuple(model.input_shape[1:]),
            batch_size=plan.local_training.batch_size,
        )
    except UnsupportedOpError as error:
        raise ExportError(f"{layer_of_op(model, error.op_name)}: {error}") from None
    return convert(computation, functions, model=model, variables_change=True)


def check_interface(model: tf.keras.Model) -> None:
    """Raises ExportError unless `model` maps one float32 tensor to logits [n, classes]."""
    inputs, outputs = model.inputs or [], model.outputs or []
    if len(inputs) != 1 or len(outputs) != 1:
        raise ExportError(
            f"the model has {len(inputs)} inputs and {len(outputs)} outputs; a Sequential or "
            "functional model with one of each can be exported"
        )
    shape = tuple(inputs[0].shape)
    if inputs[0].dtype != tf.float32 or None in shape[1:] or shape[0] is not None:
        raise ExportError(
            f"the model's input is {inputs[0].dtype.name} of shape {shape}; it must be float32 "
            "of shape (None, ...) with fixed sizes"
        )
    shape = tuple(outputs[0].shape)
    if outputs[0].dtype != tf.float32 or len(shape) != 2 or shape[1] is None:
        raise ExportError(
            f"the model's output is {outputs[0].dtype.name} of shape {shape}; it must be "
            "float32 logits of shape (None, classes)"
        )


def _signatures(
    computation: ClientComputation, *, input_shape: tuple[int, ...], batch_size: int
) -> dict[str, Any]:
    """One concrete function per name in `protocol.signatures`."""
    flat = [computation.layout.size]

    def vector(name: str) -> tf.TensorSpec:
        return tf.TensorSpec(flat, tf.float32, name)

    def scalar(name: str) -> tf.TensorSpec:
        return tf.TensorSpec([], tf.float32, name)

    train = _concrete(
        lambda x, y, weight, learning_rate: {
            "loss": computation.train_batch(x, y, weight, learning_rate)
        },
        tf.TensorSpec([batch_size, *input_shape], tf.float32, "x"),
        tf.TensorSpec([batch_size], tf.int32, "y"),
        tf.TensorSpec([batch_size], tf.float32, "weight"),
        scalar("learning_rate"),
    )
    privatize_update = _concrete(
        lambda initial, clip_norm, noise: {
            "update": computation.privatize_update(initial, clip_norm, noise)
        },
        vector("initial"),
        scalar("clip_norm"),
        vector("noise"),
    )
    return {
        signatures.TRAIN: train,
        signatures.PRIVATIZE_UPDATE: privatize_update,
        signatures.INFER: infer_signature(computation.infer, input_shape=input_shape),
        signatures.GET_WEIGHTS: _concrete(lambda: {"weights": computation.get_weights()}),
        signatures.SET_WEIGHTS: _concrete(
            lambda weights: {"size": computation.set_weights(weights)}, vector("weights")
        ),
    }


def infer_signature(infer: Callable[[Any], Any], *, input_shape: tuple[int, ...]) -> Any:
    """The signature `infer` (any number of examples) of a function from x to logits."""
    return _concrete(
        lambda x: {"logits": infer(x)}, tf.TensorSpec([None, *input_shape], tf.float32, "x")
    )


def _concrete(function: Callable[..., Any], *specs: tf.TensorSpec) -> Any:
    """`function` traced without autograph.

    The computation has no Python control flow on tensors, and autograph would
    rewrite the exceptions of gradient rules.
    """
    return tf.function(function, autograph=False).get_concrete_function(*specs)
