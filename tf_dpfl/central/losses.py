"""Keras' names and objects of losses, as the losses of a plan."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.losses import LOSSES

_K = tf.keras.losses
_OF_CLASSES = {
    _K.SparseCategoricalCrossentropy: "sparse_categorical_crossentropy",
    _K.CategoricalCrossentropy: "categorical_crossentropy",
    _K.BinaryCrossentropy: "binary_crossentropy",
    _K.MeanSquaredError: "mean_squared_error",
    _K.MeanAbsoluteError: "mean_absolute_error",
    _K.Huber: "huber",
}
_SHORT = {"mse": "mean_squared_error", "mae": "mean_absolute_error"}
_ENDS = {
    "sparse_categorical_crossentropy": tf.keras.activations.softmax,
    "categorical_crossentropy": tf.keras.activations.softmax,
    "binary_crossentropy": tf.keras.activations.sigmoid,
}


def loss_of_keras(loss: Any, model: tf.keras.Model) -> str:
    """The name, as `local_training.loss` has it, of what `compile(loss=...)` was given.

    Args:
      loss: a name, or an object of `tf.keras.losses` with its default settings.
      model: whose output it takes.

    Raises ModelError for another loss, other settings, and where the loss takes
    probabilities and the model gives logits, or the other way round.
    """
    given = _SHORT.get(loss, loss) if isinstance(loss, str) else loss
    name = given if isinstance(given, str) else _OF_CLASSES.get(type(given))
    if name not in LOSSES:
        raise ModelError(f"loss={loss!r} is not known here; it must be one of {', '.join(LOSSES)}")
    _require_default_settings(loss)
    end = _ENDS.get(name)
    if end is not None:
        _require_fitting_end(loss, model, name=name, end=end)
    return name


def _require_default_settings(loss: Any) -> None:
    if isinstance(loss, str):
        return
    plain, found = type(loss)().get_config(), loss.get_config()
    free = {"name", "from_logits", "reduction"}
    other = sorted(key for key in plain if key not in free and found[key] != plain[key])
    if loss.reduction == _K.Reduction.SUM:
        other.append("reduction")
    if other:
        raise ModelError(
            f"loss={type(loss).__name__}: {', '.join(other)} must be left at the default here"
        )


def _require_fitting_end(loss: Any, model: tf.keras.Model, *, name: str, end: Any) -> None:
    last = model.layers[-1]
    probabilities = getattr(last, "activation", None) is end or (
        isinstance(last, tf.keras.layers.Softmax) and end is tf.keras.activations.softmax
    )
    logits = not isinstance(loss, str) and bool(loss.get_config().get("from_logits"))
    if probabilities == logits:
        keras_name = next(cls.__name__ for cls, known in _OF_CLASSES.items() if known == name)
        raise ModelError(
            f"{model.name} ends in {'probabilities' if probabilities else 'logits'} and the loss "
            f"takes {'logits' if logits else 'probabilities'}: pass "
            f"tf.keras.losses.{keras_name}(from_logits={probabilities is False})"
        )
