"""Random examples that fit a model, to compare two runs of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.preparing import prepare_model
from tf_dpfl.export.ids import ids_of_inputs
from tf_dpfl.protocol.interface import INT32, ExampleTensor
from tf_dpfl.protocol.plan import LocalTraining

# An integer input that looks nothing up may be a flag, a count or a position.
_IDS_WITHOUT_TABLE = 2


class RandomExamples:
    """Draws inputs and targets of a model; ids are ids of its embeddings and classes."""

    def __init__(self, model: tf.keras.Model, local_training: LocalTraining):
        self._interface = interface_of(
            model, local_training, random_values=prepare_model(model).random_values
        )
        self._loss = local_training.loss
        self._ids = ids_of_inputs(model)

    @property
    def numbers(self) -> list[str]:
        """The names of the inputs that hold numbers, not ids."""
        return [
            tensor.name
            for tensor, ids in zip(self._interface.inputs, self._ids)
            if ids is None and tensor.dtype != INT32
        ]

    def inputs(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """`count` examples' inputs by name."""
        return {
            tensor.name: _draw_input(rng, tensor, count, ids=ids)
            for tensor, ids in zip(self._interface.inputs, self._ids)
        }

    def batch(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """`count` examples' inputs and target by name."""
        target = self._interface.target
        y = _draw(rng, target, count, below=self._interface.classes or 0)
        if self._loss == "binary_crossentropy":
            y = (y > 0).astype(np.float32)
        elif self._loss == "categorical_crossentropy":
            y = np.exp(y) / np.sum(np.exp(y), axis=-1, keepdims=True)
        batch = {**self.inputs(rng, count), target.name: y}
        if self._interface.random_values:
            shape = (count, self._interface.random_values)
            batch["random"] = rng.random(shape, dtype=np.float32)
        return batch


def _draw_input(
    rng: np.random.Generator, tensor: ExampleTensor, count: int, *, ids: int | None
) -> Any:
    if ids is None:
        return _draw(rng, tensor, count, below=_IDS_WITHOUT_TABLE)
    drawn = rng.integers(0, ids, (count, *tensor.shape))
    return drawn.astype(np.int32 if tensor.dtype == INT32 else np.float32)


def _draw(rng: np.random.Generator, tensor: ExampleTensor, count: int, *, below: int) -> Any:
    shape = (count, *tensor.shape)
    if tensor.dtype == INT32:
        return rng.integers(0, below, shape).astype(np.int32)
    return rng.normal(size=shape).astype(np.float32)
