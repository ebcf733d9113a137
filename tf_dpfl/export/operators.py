"""The ops inside a TFLite file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from tf_dpfl.export.layers import layer_of_op
from tf_dpfl.protocol.errors import ExportError

_BUILTIN_NAMES = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}


@dataclass(frozen=True)
class Operator:
    """One op: its builtin or custom name, and the name of its first output, if it has one."""

    name: str
    is_builtin: bool
    output: str


def operators_of(content: bytes) -> list[Operator]:
    """All ops of the TFLite file `content`, of every subgraph."""
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    found = []
    for graph in file.subgraphs:
        for op in graph.operators:
            code = file.operatorCodes[op.opcodeIndex]
            # Files made before schema 3a have the code in the deprecated field.
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            is_builtin = number != schema.BuiltinOperator.CUSTOM
            name = _BUILTIN_NAMES[number] if is_builtin else code.customCode.decode()
            has_output = op.outputs is not None and len(op.outputs) > 0
            # A tuned file has names at its signatures and at custom ops alone.
            output = (graph.tensors[op.outputs[0]].name or b"") if has_output else b""
            found.append(Operator(name, is_builtin, output.decode()))
    return found


def refuse_custom_ops(content: bytes, *, model: tf.keras.Model) -> Mapping[str, int]:
    """How often each op occurs in `content`.

    Raises ExportError naming layer and op when one is Flex or custom.
    """
    found = operators_of(content)
    faults = [f"{layer_of_op(model, op.output)}: op {op.name}" for op in found if not op.is_builtin]
    if faults:
        raise ExportError(
            "the file needs ops that device interpreters do not carry: "
            + "; ".join(dict.fromkeys(faults))
        )
    return Counter(op.name for op in found)
