"""Models kept in `.keras` files: whether that can be done, and reading them again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tensorflow as tf

from models.shapes import require_declared_input
from models.validate import walk_layers
from tf_dpfl.protocol.errors import ModelError, StateError
from tf_dpfl.protocol.imports import first_line


def require_keepable(model: tf.keras.Model) -> None:
    """Raises ModelError unless a `.keras` file of `model` loads again.

    Tried before the first round, because a run, a task and a server's state all
    keep the model as such a file. What does not load is a Lambda layer around
    Python code, a layer of one's own without `get_config`, or one that holds another.
    """
    require_declared_input(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path, save_format="keras")
            tf.keras.models.load_model(path, compile=False)
        except Exception as error:  # Keras raises whatever a layer's own code leads to
            raise ModelError(
                _python_code(model)
                or f"{model.name}: can not be saved as .keras and loaded again: "
                f"{first_line(error)[:300]}; use Keras' own layers instead of Lambda, activations "
                "by name, give layers of your own get_config and "
                "tf.keras.saving.register_keras_serializable, and tie weights by calling one layer "
                "twice"
            ) from None


def _python_code(model: tf.keras.Model) -> list[str]:
    """One fault for each Lambda around code that has no name."""
    return [
        f"layer {path} (Lambda): holds Python code, which no file keeps in a way that may be run; "
        "use Keras' own layers, TensorFlow's functions on what layers give, or a layer of your own "
        "with get_config and tf.keras.saving.register_keras_serializable"
        for path, layer in walk_layers(model)
        if isinstance(layer, tf.keras.layers.Lambda)
        and getattr(layer.function, "__name__", "") == "<lambda>"
    ]


def load_keras(path: Path) -> tf.keras.Model:
    """The model in a `.keras` file, for inference and further training; or StateError."""
    try:
        return tf.keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever the file's content leads to
        raise StateError(
            f"{path}: cannot be loaded as a Keras model: {first_line(error)} (a layer class of "
            "your own must be importable here)"
        ) from None
