"""The first local step by Keras alone: its layers, its losses, a GradientTape.

Shares nothing with the client computation but the fed randomness of its layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.losses import NAMED, example_losses
from tf_dpfl.client_work.preparing import KerasModel, PreparedModel, prepare_model
from tf_dpfl.export.client import random_specs, tensor_specs
from tf_dpfl.protocol.interface import TARGET
from tf_dpfl.protocol.plan import LocalTraining
from tf_dpfl.protocol.tensors import Float32

_LOSSES = tf.keras.losses
_NONE = tf.keras.losses.Reduction.NONE
_OF_KERAS: Mapping[str, Callable[[bool], Any]] = {
    "sparse_categorical_crossentropy": lambda logits: _LOSSES.SparseCategoricalCrossentropy(
        from_logits=logits, reduction=_NONE
    ),
    "categorical_crossentropy": lambda logits: _LOSSES.CategoricalCrossentropy(
        from_logits=logits, reduction=_NONE
    ),
    "binary_crossentropy": lambda logits: _LOSSES.BinaryCrossentropy(
        from_logits=logits, reduction=_NONE
    ),
    "mean_squared_error": lambda _: _LOSSES.MeanSquaredError(reduction=_NONE),
    "mean_absolute_error": lambda _: _LOSSES.MeanAbsoluteError(reduction=_NONE),
    "huber": lambda _: _LOSSES.Huber(reduction=_NONE),
}


def tape_gradient(
    model: tf.keras.Model, local_training: LocalTraining
) -> Callable[[Mapping[str, Any], Float32], Float32]:
    """A function (batch, weight) -> gradient of the weighted mean loss, float32 [d].

    A batch maps the names of the interface to arrays [B, ...] (and `random` to its
    uniforms where the model has random layers); weight is float32 [B]. The model's
    weights are those it has when the function is called.
    """
    prepared = prepare_model(model)
    forward: PreparedModel | KerasModel = prepared if prepared.random_values else KerasModel(model)
    interface = interface_of(model, local_training, random_values=prepared.random_values)
    size, variables = local_training.batch_size, model.trainable_variables

    def gradient(batch: Any, weight: tf.Tensor, random: tf.Tensor | None = None) -> tf.Tensor:
        with tf.GradientTape() as tape:
            inputs = [batch[tensor.name] for tensor in interface.inputs]
            prediction = forward(inputs, training=True, random=random)
            losses = _losses(local_training.loss, batch[TARGET], prediction)
            each = tf.reduce_mean(tf.reshape(losses, [size, -1]), axis=1)
            loss = tf.reduce_sum(each * weight) / tf.maximum(tf.reduce_sum(weight), 1.0)
        found = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.concat([tf.reshape(g, [-1]) for g in found], axis=0)

    specs = (tensor_specs(interface.tensors, size), tf.TensorSpec([size], tf.float32))
    uniforms = random_specs(interface, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse gradients of tables become dense here
        traced = tf.function(gradient, autograph=False, input_signature=(*specs, *uniforms))
        traced.get_concrete_function()

    def run(batch: Mapping[str, Any], weight: Float32) -> Float32:
        tensors = {t.name: tf.constant(batch[t.name]) for t in interface.tensors}
        random = [tf.constant(batch["random"])] if uniforms else []
        return np.array(traced(tensors, tf.constant(weight), *random))

    return run


def first_step(gradient: Float32, settings: LocalTraining, *, rate: float) -> Float32:
    """What the local optimizer's first step subtracts from the weights, float32 [d].

    Momentum starts from no velocity, and the proximal term from no distance. Adam's
    (Kingma & Ba 1412.6980, in the order of their section 2 that Keras uses) has means
    of (1 - beta) times the gradient and its square, both corrected.
    """
    if settings.optimizer != "adam":
        return np.float32(rate) * gradient
    root = np.sqrt(1.0 - settings.beta_2)
    step = rate * root * gradient / (root * np.abs(gradient) + settings.epsilon)
    return np.asarray(step, np.float32)


def _losses(loss: str, y: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
    if loss not in NAMED:
        return example_losses(loss)(y, prediction)
    op = prediction.op
    while op.type in ("Identity", "Reshape"):
        op = op.inputs[0].op
    return _OF_KERAS[loss](op.type not in ("Softmax", "Sigmoid"))(y, prediction)
