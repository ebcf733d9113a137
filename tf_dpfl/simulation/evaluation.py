"""Accuracy and loss of a Keras model on held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.losses import example_losses
from tf_dpfl.data.federated import FederatedData
from tf_dpfl.protocol.losses import BINARY_LOSS
from tf_dpfl.protocol.plan import LocalTraining

_BATCH_SIZE = 1000  # bounds memory; results do not depend on it


@dataclass(frozen=True)
class Evaluation:
    """Mean `loss` over `examples`, and the part that is classified right.

    `accuracy`, in [0, 1], is of all classes where an example has several (tags, labels),
    and None where the target is no class.
    """

    accuracy: float | None
    loss: float
    examples: int


class Evaluator:
    """Evaluates one model on the test split again and again; traced once.

    Args:
      model: as it is trained.
      data: fitted to the model, with at least one test example.
      local_training: the plan's section; it names the loss.
    """

    def __init__(self, model: tf.keras.Model, data: FederatedData, local_training: LocalTraining):
        interface = interface_of(model, local_training)
        self._examples = {tensor.name: data.test[tensor.name] for tensor in interface.tensors}
        self._count = data.test_examples
        names = [tensor.name for tensor in interface.inputs]
        self._is_class = local_training.targets_are_class_ids or local_training.loss == BINARY_LOSS
        losses = example_losses(local_training.loss)

        def batch(examples: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            inputs, y = [examples[name] for name in names], examples[interface.target.name]
            prediction = model(inputs[0] if len(inputs) == 1 else inputs, training=False)
            total = tf.reduce_sum(losses(y, prediction))
            if not self._is_class:
                return tf.zeros([0], tf.bool), total
            if local_training.loss == BINARY_LOSS:
                hits = (prediction > _threshold(prediction)) == (y > 0.5)
            else:
                hits = tf.argmax(prediction, axis=-1, output_type=tf.int32) == y
            return tf.reshape(hits, [-1]), total

        specs = {
            name: tf.TensorSpec([None, *values.shape[1:]], values.dtype)
            for name, values in self._examples.items()
        }
        self._batch = tf.function(batch, input_signature=[specs], autograph=False)

    def evaluate(self) -> Evaluation:
        """The model's figures with its weights as they are now."""
        right, loss = self._figures()
        accuracy = float(right.mean()) if self._is_class else None
        return Evaluation(accuracy, loss / self._count, self._count)

    def right(self) -> NDArray[np.bool_]:
        """What the model classifies right: [m], m times so many for targets of several classes.

        In the order of the examples; empty where the target is no class.
        """
        return self._figures()[0]

    def _figures(self) -> tuple[NDArray[np.bool_], float]:
        right, loss = [np.zeros(0, bool)], 0.0
        for start in range(0, self._count, _BATCH_SIZE):
            piece = slice(start, start + _BATCH_SIZE)
            batch_right, batch_loss = self._batch(
                {name: tf.constant(values[piece]) for name, values in self._examples.items()}
            )
            right.append(batch_right.numpy())
            loss += float(batch_loss)
        return np.concatenate(right), loss


def _threshold(prediction: tf.Tensor) -> float:
    """Where yes begins: 0.5 of a sigmoid, 0 of logits."""
    return 0.5 if prediction.op.type == "Sigmoid" else 0.0
