"""Columns in memory that the worker process of this machine reads without a copy.

The memory is an anonymous file of the kernel (memfd): it has no name on any disk
and is gone with the last process that holds it, also after kill -9.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.data.columns import ColumnFiles, FederatedData
from tf_dpfl.protocol.interface import TARGET


@contextlib.contextmanager
def shared_on_this_machine(data: FederatedData) -> Iterator[FederatedData]:
    """`data` with files for processes that inherit `files.descriptors` from this one.

    Data that have files already are given back as they are. The columns are
    copied once; drop other references to `data` to keep one copy. The files are
    there inside the block alone.
    """
    if data.files is not None:
        yield data
        return
    descriptors: list[int] = []
    try:
        paths, arrays = {}, {}
        for name, array in {**data.inputs, TARGET: data.target, "offsets": data.offsets}.items():
            paths[name], arrays[name] = _share(name, array, descriptors)
        offsets, target = arrays.pop("offsets"), arrays.pop(TARGET)
        yield replace(
            data,
            inputs=arrays,
            target=target,
            offsets=offsets,
            files=ColumnFiles(
                columns={name: path for name, path in paths.items() if name != "offsets"},
                offsets=paths["offsets"],
                descriptors=tuple(descriptors),
            ),
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _share(name: str, array: NDArray[Any], descriptors: list[int]) -> tuple[str, NDArray[Any]]:
    """A path to the bytes of `array`, and the array on the shared memory."""
    descriptor = os.memfd_create(f"tf-dpfl {name}", os.MFD_CLOEXEC)
    descriptors.append(descriptor)
    os.ftruncate(descriptor, max(array.nbytes, 1))
    shared = np.frombuffer(mmap.mmap(descriptor, max(array.nbytes, 1)), np.uint8)
    copy = shared[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return f"/proc/self/fd/{descriptor}", copy
