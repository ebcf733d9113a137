"""The running mean of a model's weights: post-processing of what DP-SGD releases."""

from __future__ import annotations

from typing import Any

import numpy as np


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
