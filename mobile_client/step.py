"""One training step of `client.tflite`, fed in the interpreter's own memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.manifest import CLIENT_FILE
from tf_dpfl.protocol.tensors import Float32, TensorLayout


class TrainingStep:
    """Runs the signature `name` of `interpreter`.

    Interpreters run a file's primary subgraph best (tflite-runtime hands no other to
    XNNPACK), and let its inputs be written in place. Where another signature is the
    primary one, as in files of older releases, inputs are collected and handed over.

    Call `write` and, where there is noise, fill what `noise` gives; then `run`. What was
    written is used up by `run`. Keep no runner of another signature meanwhile: the
    interpreter takes it for a view of its memory, and refuses.
    """

    def __init__(self, interpreter: Any, name: str):
        self._interpreter, self._name = interpreter, name
        self._inputs: dict[str, Any] = interpreter.get_signature_runner(name).get_input_details()
        self._noise = [n for n in signatures.noise_inputs(self._inputs) if n in self._inputs]
        self._others = self._inputs.keys() - set(self._noise)
        self._primary = {detail["name"] for detail in self._inputs.values()} == {
            detail["name"] for detail in interpreter.get_input_details()
        }
        if self._primary:
            interpreter.allocate_tensors()
        self._collected = {
            input_name: np.zeros(detail["shape"], detail["dtype"])
            for input_name, detail in self._inputs.items()
            # Of a single number there is no view.
            if not self._primary or not len(detail["shape"])
        }

    def check_inputs(self, names: set[str], *, noise: TensorLayout | None = None) -> None:
        """Raises TaskError unless the inputs are `names` and the noise of that layout."""
        shares = {} if noise is None else signatures.noise_inputs(noise.shapes)
        found, wanted = set(self._inputs), names | set(shares)
        if found != wanted:
            raise TaskError(
                f"{CLIENT_FILE}: its training step lacks the inputs {sorted(wanted - found)} and "
                f"has the unknown ones {sorted(found - wanted)}: the task was exported by another "
                "release; export it again"
            )
        for name, shape in shares.items():
            size = tuple(map(int, self._inputs[name]["shape"]))
            if size != shape:
                raise TaskError(f"{CLIENT_FILE}: {name} is {size}, the manifest's layout {shape}")

    def noise(self) -> list[Float32]:
        """The memory of each variable's noise, in the layout's order, to be filled.

        Views of the interpreter's memory: let them go before anything else is run.
        """
        return [self._memory(name) for name in self._noise]

    def write(self, inputs: Mapping[str, Any]) -> None:
        """Gives all other inputs: arrays and NumPy scalars.

        Raises ValueError unless they are exactly those of the file, in shape and type too.
        """
        if inputs.keys() != self._others:  # what is missing would be left from before
            raise ValueError(f"inputs {sorted(inputs)}, the file takes {sorted(self._others)}")
        for name, value in inputs.items():
            memory = self._memory(name)
            if (memory.shape, memory.dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"{name} is {value.dtype} {value.shape}, the file takes {memory.dtype} "
                    f"{memory.shape}"
                )
            np.copyto(memory, value)

    def run(self) -> None:
        """One step on what was written."""
        if not self._primary:
            self._interpreter.get_signature_runner(self._name)(**self._collected)
            return
        for name, value in self._collected.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], value)
        self._interpreter.invoke()

    def _memory(self, name: str) -> NDArray[Any]:
        if name in self._collected:
            return self._collected[name]
        # Asked for anew each time: an allocation may move it.
        view: NDArray[Any] = self._interpreter.tensor(self._inputs[name]["index"])()
        return view
