"""What stands in for parts of a client file and of the noise in the device's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from device_task import SignedTask

from tf_dpfl.protocol.signatures import noise_inputs


class SignatureOf:
    """The signature whose step is `function`, with inputs of these shapes and types."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: dict[str, tuple[tuple[int, ...], Any]],
    ):
        self._function, self._inputs = function, inputs

    def __call__(self, **inputs: Any) -> Any:
        return self._function(**inputs)

    def get_input_details(self) -> dict[str, Any]:
        return {
            name: {"name": f"step_{name}", "index": index, "shape": shape, "dtype": dtype}
            for index, (name, (shape, dtype)) in enumerate(self._inputs.items())
        }


def inputs_of_step(task: SignedTask) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of each input of the training step of `task`."""
    plan, interface = task.manifest.plan, task.manifest.interface
    size = plan.local_training.batch_size
    inputs: dict[str, tuple[tuple[int, ...], Any]] = {
        tensor.name: ((size, *tensor.shape), tensor.dtype) for tensor in interface.tensors
    }
    inputs |= {"weight": ((size,), np.float32), "learning_rate": ((), np.float32)}
    if plan.privacy.unit == "example":
        inputs["sensitivity"] = ((), np.float32)
        shares = noise_inputs(task.manifest.layout.shapes)
        inputs |= {name: (shape, np.float32) for name, shape in shares.items()}
    return inputs


def giving(draw: Callable[[], np.ndarray]) -> Callable[[Sequence[np.ndarray]], None]:
    """A `draw_noise` that cuts up what `draw` returns, float32 [d]."""

    def fill(parts: Sequence[np.ndarray]) -> None:
        rest = draw()
        assert len(rest) == sum(part.size for part in parts)
        for part in parts:
            part[...] = rest[: part.size].reshape(part.shape)
            rest = rest[part.size :]

    return fill
