"""Training to the running mean of a model's weights, which is post-processing of DP-SGD."""

from __future__ import annotations

from typing import Any

import numpy as np
from splits import Labelled


class RunningMean:
    """Exponentially weighted mean of the weights after each step, without its start's bias."""

    def __init__(self, decay: float):
        self._decay, self._steps = decay, 0
        self._totals: list[np.ndarray] = []

    def callback(self) -> Any:
        """What `fit` calls after every step."""
        import tensorflow as tf

        def add(batch: int, logs: Any) -> None:  # noqa: ARG001  Keras' signature
            weights = callback.model.get_weights()
            totals = self._totals or [np.zeros_like(array) for array in weights]
            self._totals = [
                self._decay * total + (1 - self._decay) * array
                for total, array in zip(totals, weights)
            ]
            self._steps += 1

        callback = tf.keras.callbacks.LambdaCallback(on_train_batch_end=add)
        return callback

    @property
    def weights(self) -> list[np.ndarray]:
        """The mean so far, an array a variable."""
        return [total / (1 - self._decay**self._steps) for total in self._totals]


def fit_to_mean(
    private: Any, train: Labelled, *, optimizer: Any, batch_size: int, steps: int, decay: float
) -> list[np.ndarray]:
    """Trains a `DPModel` that classifies by logits; the weights' running mean, an array a variable.

    Args:
      train: inputs and class ids.
      batch_size: examples a step in expectation.
      decay: of the running mean.
    """
    import tensorflow as tf

    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    private.compile(optimizer, loss=loss)
    mean = RunningMean(decay)
    private.fit(
        *train,
        batch_size=batch_size,
        steps_per_epoch=steps,
        callbacks=[mean.callback()],
        verbose=0,
    )
    return mean.weights
