"""TFF's worker process: started here, ended here.

Stock TFF starts `worker_binary` on first use and leaves it running when Python
ends by a signal or `os._exit`; it then holds the inherited stdout for ever.
Here the worker gets no inherited output, dies with its parent (also after
kill -9), and is ended and waited for on every way out.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.native import compiler
from tensorflow_federated.python.core.environments.tensorflow_frontend import (
    tensorflow_computation,
)
from tensorflow_federated.python.core.impl.context_stack import runtime_error_context

from tf_dpfl.protocol.errors import StateError

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LARGEST_MESSAGE_BYTES = 2_000_000_000  # gRPC's limit is 2^31 - 1
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _LARGEST_MESSAGE_BYTES),
]
_LIBC = ctypes.CDLL(None)


@atexit.register
def _drop_tffs_own_context() -> None:
    """Ends TFF's default context while Python is still whole.

    Left to the interpreter's shutdown, its finalizer prints an ignored error,
    and a worker it may have started is not ended.
    """
    tff.framework.set_default_context(runtime_error_context.create_runtime_error_context())


@contextlib.contextmanager
def tff_runtime(*, concurrent_calls: int | None = None) -> Iterator[None]:
    """TFF computations called inside run on a worker that lives as long as the block.

    Args:
      concurrent_calls: clients the worker computes at a time, >= 1; None takes
        one for each core. (TFF's own default starts all at once, and with
        hundreds of clients the cores are busy switching between them.)

    Raises StateError when the worker cannot be started.
    """
    port = _free_port()
    worker = _start_worker(port, concurrent_calls or len(os.sched_getaffinity(0)))
    try:
        channel = grpc.insecure_channel(f"localhost:{port}", _CHANNEL_OPTIONS)
        stub = tff.framework.RemoteExecutorGrpcStub(channel)
        _wait_until_ready(stub, worker)
        with tff.framework.get_context_stack().install(_context(stub)):
            yield
    finally:
        _stop(worker)


def _context(stub: Any) -> Any:
    def executor(cardinalities: Any) -> Any:
        cardinalities.setdefault(tff.CLIENTS, 0)  # an empty cohort
        remote = tff.framework.RemoteExecutor(stub)
        remote.set_cardinalities(cardinalities)
        return remote

    return tff.framework.SyncExecutionContext(
        executor_fn=tff.framework.ResourceManagingExecutorFactory(executor),
        compiler_fn=compiler.desugar_and_transform_to_native,
        transform_args=tensorflow_computation.transform_args,
        transform_result=tensorflow_computation.transform_result,
    )


def _start_worker(port: int, concurrent_calls: int) -> subprocess.Popen[bytes]:
    binary = Path(tff.__file__).parent / "data" / "worker_binary"
    if not binary.is_file():
        raise StateError(f"{binary}: TFF's worker is missing; install tensorflow-federated again")

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        [str(binary), f"--port={port}", f"--max_concurrent_computation_calls={concurrent_calls}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches Python first, which then ends the worker
        preexec_fn=die_with_parent,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def _wait_until_ready(stub: Any, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not stub.is_ready:
        if worker.poll() is not None:
            raise StateError(f"TFF's worker ended with status {worker.returncode} at its start")
        if time.monotonic() > deadline:
            raise StateError(f"TFF's worker did not answer within {_START_TIMEOUT_S:g} s")
        time.sleep(0.02)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.kill()  # it keeps nothing that has to be saved
    worker.wait(_STOP_TIMEOUT_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
