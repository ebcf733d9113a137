"""One TFF computation over several workers: parts of the clients, added up in order.

TFF's own context for several workers runs one after the other (its remote
executor waits inside a coroutine), and adds partial sums up in the order they
arrive. Here each worker's part has a thread of its own and the sums a fixed
order, so that a round's result does not depend on who computed it, or how often.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

import grpc
import tensorflow_federated as tff
from tensorflow_federated.python.common_libs import structure
from tensorflow_federated.python.core.backends.native import compiler, mergeable_comp_compiler
from tensorflow_federated.python.core.environments.tensorflow_frontend import (
    tensorflow_computation,
)
from tensorflow_federated.python.core.impl.execution_contexts import (
    mergeable_comp_execution_context,
)
from tensorflow_federated.python.core.impl.executors.cardinalities_utils import (
    infer_cardinalities,
)
from tensorflow_federated.python.core.impl.executors.executors_errors import RetryableError
from tensorflow_federated.python.core.impl.types import type_analysis, type_conversions

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation.remote_calls import RemoteCalls
from tf_dpfl.simulation.workers import Worker

_ASK_AGAIN_S = 0.1
_MOST_EXECUTORS = 3  # an empty cohort's, a full one's, and that of another size

# Between a failure and the next attempt; doubled each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 30.0


class SpreadContext(tff.framework.SyncContext):
    """Computes on `workers`, each of which may fail and come back.

    A computation over clients is cut into as many parts as there are workers,
    whether they live or not: part i is for worker i, and for another one while
    that does not answer. Everything else runs on any of them.

    Args:
      workers: at least one.
      patience_s: how long to wait for any worker when none answers.
      notices: receives a dictionary for each worker lost or found again.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        patience_s: float,
        notices: queue.SimpleQueue[dict[str, Any]],
    ):
        crew = _Crew(workers, patience_s=patience_s, notices=notices)
        native = functools.lru_cache(None)(compiler.desugar_and_transform_to_native)
        self._compiling = threading.Lock()

        def compiled(computation: Any) -> Any:
            with self._compiling:  # each once, whichever part asks first
                return native(computation)

        self._parts = [_Part(crew, index, compiled) for index in range(len(workers))]
        self._mergeable = functools.lru_cache(None)(_mergeable_form)

    def invoke(self, comp: Any, arg: Any) -> Any:
        """The result of `comp`; StateError when no worker is left."""
        form = self._mergeable(comp) if len(self._parts) > 1 else None
        if form is None:
            return self._parts[0].start(comp, arg).result()
        pieces = mergeable_comp_execution_context.MergeableCompExecutionContextValue(
            arg, form.up_to_merge.type_signature.parameter, len(self._parts)
        ).value()
        futures = [part.start(form.up_to_merge, piece) for part, piece in zip(self._parts, pieces)]
        wait(futures)  # all: no part is left running, or failing, on its own
        total, *others = [future.result() for future in futures]
        home = self._parts[0]
        for other in others:
            total = home.start(form.merge, structure.Struct.unnamed(total, other)).result()
        # What is left needs the sum and no client: none of their data travels again.
        alone = _without_clients(arg, form.up_to_merge.type_signature.parameter)
        result = home.start(form.after_merge, structure.Struct.unnamed(alone, total)).result()
        return type_conversions.type_to_py_container(result, form.after_merge.type_signature.result)

    def close(self) -> None:
        """Ends the parts' threads, once what they wait for has ended."""
        for part in self._parts:
            part.close()


class _Crew:
    """The workers, and which part of the clients each of them computes."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        patience_s: float,
        notices: queue.SimpleQueue[dict[str, Any]],
    ):
        self._workers = workers
        self._patience_s = patience_s
        self._notices = notices
        self._lock = threading.Lock()
        self._lost: set[str] = set()
        self._of_part: dict[int, Worker] = {}
        for worker in workers:  # names who is missing from the start
            self._is_ready(worker)

    def worker_for(self, part: int) -> Worker:
        """The part's own worker if it answers, else the one with the least to do.

        Raises StateError when none has answered for `patience_s`.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            with self._lock:
                ready = [worker for worker in self._workers if self._is_ready(worker)]
                if ready:
                    busy = [w for p, w in self._of_part.items() if p != part]
                    own = self._workers[part]
                    chosen = own if own in ready else min(ready, key=busy.count)
                    self._of_part[part] = chosen
                    return chosen
            if not time.monotonic() < deadline:
                names = ", ".join(worker.name for worker in self._workers)
                raise StateError(
                    f"no worker is left: {names} (waited {self._patience_s:g} s); start one "
                    "again and then the same command: the run goes on from its last checkpoint"
                )
            time.sleep(_ASK_AGAIN_S)

    def is_at_home(self, part: int) -> bool:
        """False when the part's own worker answers again and another one holds the part."""
        own = self._workers[part]
        with self._lock:
            return self._of_part.get(part, own) is own or not self._is_ready(own)

    def _is_ready(self, worker: Worker) -> bool:
        ready = worker.is_ready()
        if ready and worker.name in self._lost:
            self._lost.remove(worker.name)
            self._notices.put({"event": "worker found", "worker": worker.name})
        elif not ready and worker.name not in self._lost:
            self._lost.add(worker.name)
            self._notices.put({"event": "worker lost", "worker": worker.name})
        return ready


class _Part:
    """A part of the clients: a thread that computes for it, wherever it can."""

    def __init__(self, crew: _Crew, index: int, compiled: Any):
        self._crew = crew
        self._index = index
        self._compiled = compiled
        self._calls: dict[int, RemoteCalls] = {}
        self._todo: queue.SimpleQueue[tuple[Future[Any], Any, Any] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def start(self, comp: Any, arg: Any) -> Future[Any]:
        """Begins to compute; tries again when a worker fails."""
        future: Future[Any] = Future()
        self._todo.put((future, comp, arg))
        return future

    def close(self) -> None:
        """Ends the thread once the call it is in returns; nobody waits for the result."""
        self._closed.set()
        self._todo.put(None)

    def _work(self) -> None:
        for future, comp, arg in iter(self._todo.get, None):
            try:
                future.set_result(self._compute(comp, arg))
            except BaseException as error:  # it belongs to whoever waits for the result
                future.set_exception(error)
            del future, comp, arg  # a round's values, until the next one

    def _compute(self, comp: Any, arg: Any) -> Any:
        native, arg, pause_s = self._compiled(comp), _without_tensors(arg), _FIRST_PAUSE_S
        signature = comp.type_signature
        # None: no clients, or an empty cohort.
        clients = infer_cardinalities(arg, signature.parameter).get(tff.CLIENTS, 0)
        while True:
            try:
                result = self._calls_of(clients).call(native, arg)
                return type_conversions.type_to_py_container(result, signature.result)
            except Exception as error:
                self._close_all()  # what stood on a worker that failed
                if not isinstance(error, RetryableError) or self._closed.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _calls_of(self, clients: int) -> RemoteCalls:
        """Calls over so many clients, on a worker that answers."""
        if not self._crew.is_at_home(self._index):
            self._close_all()
        if clients not in self._calls:
            if len(self._calls) == _MOST_EXECUTORS:  # each holds the graphs' sessions
                self._calls.pop(next(iter(self._calls))).close()
            worker = self._crew.worker_for(self._index)
            self._calls[clients] = RemoteCalls(worker.stub, clients=clients)
        return self._calls[clients]

    def _close_all(self) -> None:
        while self._calls:
            # A worker that is gone has nothing to forget.
            with contextlib.suppress(grpc.RpcError, RetryableError):
                self._calls.popitem()[1].close()


def _without_tensors(value: Any) -> Any:
    """`value` with NumPy arrays in the place of tensors."""
    if isinstance(value, structure.Struct):
        return structure.Struct(
            (name, _without_tensors(part)) for name, part in structure.iter_elements(value)
        )
    return tensorflow_computation.transform_args(value)


def _mergeable_form(comp: Any) -> Any:
    """`comp` as a sum over parts and a rest without clients; None if it is no such thing."""
    signature = comp.type_signature
    if not _names_clients(signature.parameter) or _names_clients(signature.result):
        return None
    try:
        return mergeable_comp_compiler.compile_to_mergeable_comp_form(comp)
    except ValueError:  # one aggregation needs another's result
        return None


def _names_clients(type_spec: Any) -> bool:
    return type_spec is not None and type_analysis.contains(
        type_spec, lambda t: isinstance(t, tff.FederatedType) and t.placement is tff.CLIENTS
    )


def _without_clients(value: Any, type_spec: Any) -> Any:
    """`value` with every list of clients' values empty."""
    if isinstance(type_spec, tff.StructType):
        parts = structure.iter_elements(structure.from_container(value))
        types = structure.iter_elements(type_spec)
        return structure.Struct(
            (name, _without_clients(part, element))
            for (_, part), (name, element) in zip(parts, types)
        )
    if isinstance(type_spec, tff.FederatedType) and type_spec.placement is tff.CLIENTS:
        return value if type_spec.all_equal else []
    return value
