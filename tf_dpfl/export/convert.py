"""Conversion of TensorFlow functions to a TFLite file, and what its failures mean."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError

from tf_dpfl.export.alternatives import instead_of
from tf_dpfl.export.layers import find_layer, layer_of_op
from tf_dpfl.export.quiet import quiet
from tf_dpfl.export.tuning import tune
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.imports import first_line


def convert(
    module: tf.Module,
    signatures: Mapping[str, Any],
    *,
    model: tf.keras.Model,
    variables_change: bool,
    primary: str | None = None,
    configure: Callable[[Any], None] | None = None,
) -> bytes:
    """The TFLite file of concrete functions, made of builtin ops only.

    Args:
      module: owns the variables the functions use.
      signatures: signature name -> concrete function.
      model: the Keras model behind them, to name layers in errors.
      variables_change: whether the functions write variables; otherwise these
        become constants, which is smaller and can be quantized.
      primary: the signature that interpreters are to run best, of functions that
        write variables.
      configure: last word on the `tf.lite.TFLiteConverter`.

    Raises:
      ExportError: an op has no TFLite builtin; names its layer.
    """
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with quiet(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter's own code
        try:
            tf.saved_model.save(module, folder, signatures=dict(signatures), options=options)
        except (AssertionError, ValueError) as error:  # tables, or state that no layer owns
            raise ExportError(
                f"{model.name}: can not be saved with its functions: {first_line(error)}; use "
                "layers whose only state are their weights"
            ) from None
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = variables_change
        if configure is not None:
            configure(converter)
        try:
            content: bytes = converter.convert()
        except ConverterError as error:
            raise ExportError(_explain(error, model)) from None
    return tune(content, primary=primary) if variables_change else content


def _explain(error: ConverterError, model: tf.keras.Model) -> list[str]:
    ops: dict[str, dict[str, str]] = {}
    for entry in error.errors:
        op = entry.operator.name.removeprefix("tf.")
        if op:
            place = entry.location.call[0].name if entry.location.call else ""
            found = find_layer(model, place)
            instead = instead_of(found and found[1], op, has_builtin=False)
            ops.setdefault(layer_of_op(model, place), {})[op] = instead
    if not ops:
        return [f"the TFLite converter failed: {str(error).strip()}"]
    return [
        f"{place}: {', '.join(f'op {op}' for op in names)} has no TFLite builtin op, and devices "
        f"carry no Flex delegate; {'; '.join(dict.fromkeys(names.values()))}"
        for place, names in ops.items()
    ]
