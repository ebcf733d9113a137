"""Accuracy and loss of a Keras model on held-out examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.losses import sparse_softmax_cross_entropy
from tf_dpfl.protocol.tensors import Float32

_BATCH_SIZE = 1000  # bounds memory; results do not depend on it


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` in [0, 1] and mean cross-entropy `loss` over `examples`."""

    accuracy: float
    loss: float
    examples: int


class Evaluator:
    """Evaluates one model again and again; traced once.

    Args:
      model: ends in logits.
      x: float32 [n, ...]; y: int32 [n]; n >= 1.
    """

    def __init__(self, model: tf.keras.Model, x: Float32, y: NDArray[np.int32]):
        self._x, self._y = x, np.asarray(y, np.int32)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, *x.shape[1:]], tf.float32),
                tf.TensorSpec([None], tf.int32),
            ]
        )
        def batch(features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = model(features, training=False)
            hits = tf.argmax(logits, axis=-1, output_type=tf.int32) == labels
            losses = sparse_softmax_cross_entropy(labels, logits)
            return tf.math.count_nonzero(hits), tf.reduce_sum(losses)

        self._batch = batch

    def evaluate(self) -> Evaluation:
        """The model's figures with its weights as they are now."""
        hits, loss = 0, 0.0
        for start in range(0, len(self._y), _BATCH_SIZE):
            piece = slice(start, start + _BATCH_SIZE)
            batch_hits, batch_loss = self._batch(self._x[piece], self._y[piece])
            hits += int(batch_hits)
            loss += float(batch_loss)
        return Evaluation(hits / len(self._y), loss / len(self._y), len(self._y))
