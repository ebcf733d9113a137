"""Models by the name a plan gives: one of the registry's, or a user's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from models import vision
from models.shapes import Shape, check_shapes
from tf_dpfl.protocol.errors import ModelError
from tf_dpfl.protocol.imports import first_line, import_function

_MODELS: dict[str, Callable[..., tf.keras.Model]] = {
    "linear": vision.linear,
    "mlp": vision.mlp,
    "cnn": vision.cnn,
}

_KEYWORDS = ("input_shape", "classes")


def registered_models() -> dict[str, str]:
    """The registry's names, each with one line that describes the model."""
    return {
        name: (inspect.getdoc(function) or "").splitlines()[0] for name, function in _MODELS.items()
    }


def build_model(
    model: str, *, input_shape: Shape | Mapping[str, Shape], classes: int, positions: Shape = ()
) -> tf.keras.Model:
    """The Keras model that `model` names, built and with fresh weights.

    Args:
      model: a name of the registry, or "package.module:function". The function
        is called with those of the keywords `input_shape` and `classes` that its
        signature names, and returns a Keras model.
      input_shape: shape of one example; where a model has several inputs, of each, by
        the name of its array ("x_<name>").
      classes: number of classes, or of values.
      positions: sizes in front of the classes, of models that predict at every step.

    Raises:
      ModelError: in one line: an unknown name, a module or function that can not
        be imported, a function that fails or returns something else, a model of
        other shapes (`check_shapes`).
    """
    if isinstance(input_shape, Mapping):
        input_shape = {key: tuple(shape) for key, shape in input_shape.items()}
    else:
        input_shape = tuple(input_shape)
    sizes: dict[str, Any] = {"input_shape": input_shape, "classes": classes}
    name = f"task.model={model!r}"
    if ":" in model:
        built = _call(name, import_function(model, name=name), sizes)
    elif model in _MODELS:
        built = _MODELS[model](**sizes)
    else:
        raise ModelError(
            f"{name} is not a registered model ({', '.join(_MODELS)}); a function of your own "
            'is named "package.module:function"'
        )
    if not isinstance(built, tf.keras.Model):
        raise ModelError(f"{name} returned {type(built).__name__}; it must return a Keras model")
    check_shapes(built, **sizes, positions=tuple(positions), name=name)
    return built


def _call(name: str, function: Callable[..., Any], sizes: dict[str, Any]) -> Any:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = []
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and (p.name not in _KEYWORDS or p.kind is p.POSITIONAL_ONLY)
    ]
    if missing:
        raise ModelError(
            f"{name} requires {', '.join(missing)}; it is called with the keywords "
            f"{' and '.join(_KEYWORDS)} alone: give the others defaults"
        )
    wanted = {key: value for key, value in sizes.items() if takes_all or key in named}
    try:
        return function(**wanted)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ModelError(f"{name} failed: {first_line(error)}") from error
