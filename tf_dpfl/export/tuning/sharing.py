"""Computing equal things once, and leaving out what nothing uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_dpfl.export.tuning.file import Graph

_STATEFUL = frozenset(
    {
        "ASSIGN_VARIABLE",
        "CALL",
        "CALL_ONCE",
        "CUSTOM",
        "IF",
        "MULTINOMIAL",
        "RANDOM_STANDARD_NORMAL",
        "RANDOM_UNIFORM",
        "WHILE",
    }
)
"""Ops that may do more than compute their outputs from their inputs."""


def share(graph: Graph) -> None:
    """Leaves out ops that compute what an earlier op has computed, or nothing new.

    A variable that was written is read anew. Ops run in the order of the file.
    """
    same: dict[int, int] = {}
    known: dict[Any, Any] = {}
    constants: dict[Any, int] = {}
    origins: dict[int, int] = {}  # of what a RESHAPE made
    kept = []
    outputs = set(graph.subgraph.outputs)

    def source(tensor: int) -> int:
        tensor = same.get(tensor, tensor)
        value = None if tensor < 0 else graph.value(tensor)
        if value is None:
            return tensor
        return constants.setdefault((value.dtype.str, value.shape, value.tobytes()), tensor)

    for op in graph.subgraph.operators:
        op.inputs = np.array([source(int(tensor)) for tensor in op.inputs], np.int32)
        name = graph.name(op)
        if name in _STATEFUL:
            # What a variable holds may be another from here on.
            written = {op.inputs[0]} if name == "ASSIGN_VARIABLE" else None
            known = {key: twin for key, twin in known.items() if not _reads(key, written)}
            kept.append(op)
            continue
        if name == "RESHAPE" and graph.is_fixed(op.outputs[0]):
            # Every RESHAPE copies: straight from the source, or not at all.
            (made,), origin = op.outputs, origins.get(op.inputs[0], op.inputs[0])
            op.inputs[0] = origins[made] = origin
            if graph.shape(origin) == graph.shape(made) and made not in outputs:
                same[made] = origin
                continue
        key = (name, *_computation(graph, name, op))
        twin = known.setdefault(key, op)
        if twin is op or outputs & set(op.outputs):
            kept.append(op)
        else:
            same.update({int(a): int(b) for a, b in zip(op.outputs, twin.outputs)})
    needed = outputs.copy()
    used = []
    for op in reversed(kept):
        if graph.name(op) in _STATEFUL or needed & set(op.outputs):
            needed |= set(op.inputs)
            used.append(op)
    graph.subgraph.operators = used[::-1]


def _reads(key: tuple[Any, ...], variables: set[Any] | None) -> bool:
    """Whether `key` is of reading one of the `variables` (by handle; None: of any)."""
    name, inputs, *_ = key
    return name == "READ_VARIABLE" and (variables is None or bool(variables & set(inputs)))


def _computation(graph: Graph, name: str, op: Any) -> tuple[Any, ...]:
    """What tells ops of the same name apart."""
    if name == "RESHAPE":  # the target is said by an input, by an option or by both
        return op.inputs[0], graph.shape(op.outputs[0])
    return tuple(op.inputs), _settled(op.builtinOptions)


def _settled(options: Any) -> Any:
    """The options of an op as something that can be compared."""
    if options is None or not vars(options):  # SLICE has a table of nothing, or none
        return None
    fields = ((k, v.tolist() if hasattr(v, "tolist") else v) for k, v in vars(options).items())
    return type(options).__name__, repr(sorted(fields))


def drop_unused(file: Any) -> None:
    """Takes out tensors that no op uses and names that nobody needs; equal buffers stay once."""
    custom = {index for index, code in enumerate(file.operatorCodes) if code.customCode}
    for index, graph in enumerate(file.subgraphs):
        _drop_names(graph, custom)
        _drop_tensors(graph, [d for d in file.signatureDefs or [] if d.subgraphIndex == index])
    _drop_buffers(file)


def _drop_names(graph: Any, custom: set[int]) -> None:
    """Of what is inside: a quarter of the file of a recurrent model.

    Those of ops that are no builtins stay, because errors find the layer by them.
    """
    named = {*graph.inputs, *graph.outputs}
    for op in graph.operators:
        if op.opcodeIndex in custom:
            named |= set(op.outputs)
    for index, tensor in enumerate(graph.tensors):
        if index not in named:
            tensor.name = None


def _drop_tensors(graph: Any, signatures: list[Any]) -> None:
    used = {*graph.inputs, *graph.outputs}
    for op in graph.operators:
        used |= {*op.inputs, *op.outputs}
    kept = sorted(int(tensor) for tensor in used if tensor >= 0)
    place = {tensor: index for index, tensor in enumerate(kept)} | {-1: -1}

    def moved(tensors: Any) -> Any:
        return np.array([place[int(tensor)] for tensor in tensors], np.int32)

    graph.tensors = [graph.tensors[tensor] for tensor in kept]
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for op in graph.operators:
        op.inputs, op.outputs = moved(op.inputs), moved(op.outputs)
    for signature in signatures:
        for entry in [*(signature.inputs or []), *(signature.outputs or [])]:
            entry.tensorIndex = place[entry.tensorIndex]


def _drop_buffers(file: Any) -> None:
    """Buffer 0 stays the empty one, which tensors without a value name."""
    kept, place = [file.buffers[0]], {b"": 0}

    def moved(index: int) -> int:
        data = file.buffers[index].data
        content = b"" if data is None else bytes(data)
        if content not in place:
            place[content] = len(kept)
            kept.append(file.buffers[index])
        return place[content]

    for graph in file.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = moved(tensor.buffer)
    for metadata in file.metadata or []:
        metadata.buffer = moved(metadata.buffer)
    file.buffers = kept
