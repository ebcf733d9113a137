"""TFF's runtime for a block of code: workers found or started, and let go at its end."""

from __future__ import annotations

import atexit
import contextlib
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import runtime_error_context

from tf_dpfl.simulation.spread import SpreadContext
from tf_dpfl.simulation.worker_process import usable_cores
from tf_dpfl.simulation.workers import LocalWorker, Worker, connected

# How long workers are waited for: at the start each, later when none is left.
_FIND_TIMEOUT_S = 10.0
_PATIENCE_S = 20.0

# A worker does not tell how many cores it has. So many shards keep most machines
# busy, and on smaller ones they wait for each other.
_PLACES_OF_A_REMOTE_WORKER = 8


@dataclass(frozen=True)
class Runtime:
    """What computes: `places` shards at a time, on `workers` (their names)."""

    places: int
    workers: tuple[str, ...]
    _notices: queue.SimpleQueue[dict[str, Any]]

    def notices(self) -> list[dict[str, Any]]:
        """Events since the last call: a worker lost or found again."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._notices.get_nowait())
        return found


@atexit.register
def _drop_tffs_own_context() -> None:
    """Ends TFF's default context while Python is still whole.

    Left to the interpreter's shutdown, its finalizer prints an ignored error,
    and a worker it may have started is not ended.
    """
    tff.framework.set_default_context(runtime_error_context.create_runtime_error_context())


@contextlib.contextmanager
def tff_runtime(
    *,
    concurrent_calls: int | None = None,
    workers: Sequence[str] = (),
    inherited: Sequence[int] = (),
) -> Iterator[Runtime]:
    """TFF computations called inside run on workers; a computation over clients on all.

    Without `workers` one is started on this machine and ended with the block, also
    after an exception and kill -9. A worker that dies is survived: what it was
    computing is computed again, by another one or (on this machine) by a new
    process, with the same seeds and so with the same result.

    Args:
      concurrent_calls: clients the local worker computes at a time, >= 1; None
        takes one for each core. (TFF's own default starts all at once, and with
        hundreds of clients the cores are busy switching between them.)
      workers: "host:port" of workers that run already (`dpfl worker`).
      inherited: file descriptors that the local worker gets under the same
        numbers: what they hold is /proc/self/fd/N in a computation.

    Raises StateError when no worker answers or can be started; inside the block,
    when none is left.
    """
    notices: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        crew: list[Worker] = []
        if workers:
            crew += stack.enter_context(connected(workers, timeout_s=_FIND_TIMEOUT_S))
            places = _PLACES_OF_A_REMOTE_WORKER * len(crew)
        else:
            places = concurrent_calls or usable_cores()
            local = LocalWorker(concurrent_calls=places, inherited=inherited)
            stack.callback(local.close)
            local.stub  # noqa: B018  started now, so that a failure is met here
            crew.append(local)
        context = SpreadContext(crew, patience_s=_PATIENCE_S, notices=notices)
        stack.callback(context.close)
        with tff.framework.get_context_stack().install(context):
            yield Runtime(places, tuple(worker.name for worker in crew), notices)
