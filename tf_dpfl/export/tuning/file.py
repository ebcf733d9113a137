"""Reading and editing the graphs inside a TFLite file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema

_CODES = {n: code for n, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_NAMES = {code: name for name, code in _CODES.items()}
_OPTIONS = {n: k for n, k in vars(schema.BuiltinOptions).items() if isinstance(k, int)}
_FILE_IDENTIFIER = b"TFL3"
_DTYPES = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT32: np.int32}
_TYPES = {np.dtype(dtype): number for number, dtype in _DTYPES.items()}


def unpack(content: bytes) -> Any:
    """The file as an editable `ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def pack(file: Any) -> bytes:
    """The bytes of `file`."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def subgraphs_of(file: Any) -> list[Graph]:
    """Every subgraph: signatures and the bodies of loops."""
    return [Graph(file, subgraph) for subgraph in file.subgraphs]


class Graph:
    """One subgraph of a file. Tensors are known by their index, as in the file."""

    def __init__(self, file: Any, subgraph: Any):
        self._file = file
        self.subgraph = subgraph
        for op in [subgraph, *subgraph.operators]:  # empty lists are read as None
            op.inputs = [] if op.inputs is None else op.inputs
            op.outputs = [] if op.outputs is None else op.outputs
        self._constants: dict[tuple[Any, ...], int] = {}
        self._made: list[Any] = []
        self._makers = {int(t): op for op in subgraph.operators for t in op.outputs}

    def name(self, op: Any) -> str:
        """The builtin's name, such as "CONV_2D"."""
        code = self._file.operatorCodes[op.opcodeIndex]
        return _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def producer(self, tensor: int) -> Any | None:
        """The op of the original graph that makes `tensor`."""
        return self._makers.get(int(tensor))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Its sizes; an open size (of a tensor that is not `is_fixed`) reads 1."""
        shape = self.subgraph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def is_fixed(self, tensor: int) -> bool:
        """Whether every size is known before running."""
        signature = self.subgraph.tensors[tensor].shapeSignature
        return signature is None or all(size >= 0 for size in signature)

    def is_float(self, tensor: int) -> bool:
        """Whether it holds float32."""
        return bool(self.subgraph.tensors[tensor].type == schema.TensorType.FLOAT32)

    def is_int(self, tensor: int) -> bool:
        """Whether it holds int32."""
        return bool(self.subgraph.tensors[tensor].type == schema.TensorType.INT32)

    def value(self, tensor: int) -> NDArray[Any] | None:
        """The value of a float32 or int32 constant; None of anything else."""
        held = self.subgraph.tensors[tensor]
        data = self._file.buffers[held.buffer].data
        if data is None or not len(data) or held.type not in _DTYPES:
            return None
        dtype: Any = _DTYPES[held.type]
        return np.frombuffer(bytes(data), dtype).reshape(self.shape(tensor))

    def constant(self, value: NDArray[Any]) -> int:
        """A tensor that holds `value`, float32 or int32."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            self._file.buffers.append(buffer)
            made = self._tensor(value.shape, _TYPES[value.dtype])
            self.subgraph.tensors[made].buffer = len(self._file.buffers) - 1
            self._constants[key] = made
        return self._constants[key]

    def add(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        into: int | None = None,
        options: str | None = None,
        **fields: Any,
    ) -> int:
        """A new op, in its place among those that a rewrite makes; returns its output.

        Args:
          name: the builtin.
          inputs: tensors.
          shape: of the float32 output.
          into: an existing tensor to write instead of a new one.
          options: the schema's table of options, such as "ReshapeOptions".
          fields: entries of that table.
        """
        op = schema.OperatorT()
        op.opcodeIndex = self._opcode(name)
        op.inputs = np.array(inputs, np.int32)
        output = self._tensor(shape, schema.TensorType.FLOAT32) if into is None else into
        op.outputs = np.array([output], np.int32)
        if options is not None:
            op.builtinOptionsType = _OPTIONS[options]
            op.builtinOptions = getattr(schema, f"{options}T")()
            for field, value in fields.items():
                setattr(op.builtinOptions, field, value)
        self._made.append(op)
        return output

    def made(self) -> list[Any]:
        """The ops added since the last call."""
        made, self._made = self._made, []
        return made

    def _tensor(self, shape: Sequence[int], dtype: int) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.type = f"tuned_{len(self.subgraph.tensors)}".encode(), dtype
        tensor.shape, tensor.buffer = np.array(shape, np.int32), 0
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def _opcode(self, name: str) -> int:
        codes = self._file.operatorCodes
        for index, code in enumerate(codes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == _CODES[name]:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = _CODES[name], 1
        # Readers before schema 3a look at this one, a byte.
        code.deprecatedBuiltinCode = min(_CODES[name], 127)
        codes.append(code)
        return len(codes) - 1
