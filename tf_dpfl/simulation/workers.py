"""Connections to TFF workers: one of this process's own, or some on other machines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grpc
import tensorflow_federated as tff

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation.worker_process import WorkerProcess, start_worker

_START_TIMEOUT_S = 60.0
_POLL_S = 0.02
# A local worker that died for memory once may fit with other programs gone, but
# not for ever.
_MOST_RESTARTS = 3
_LARGEST_MESSAGE_BYTES = 2_000_000_000  # gRPC's limit is 2^31 - 1
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _LARGEST_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A machine that vanishes sends nothing. TFF's worker refuses pings more often
    # than every five minutes while it computes (gRPC's default), so no sooner.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class Worker(Protocol):
    """Where computations can be sent."""

    name: str

    @property
    def stub(self) -> Any:
        """TFF's stub of the connection, tried to be made; StateError when it never can be."""

    def is_ready(self) -> bool:
        """Whether the connection stands; if not, it is being tried again."""


class RemoteWorker:
    """A worker that somebody else started, at `address` ("host:port").

    The connection is made again whenever the worker comes back.
    """

    def __init__(self, address: str):
        self.name = address
        self._channel = _Channel(grpc.insecure_channel(address, _CHANNEL_OPTIONS))
        self.stub = _Stub(self._channel)

    def is_ready(self) -> bool:
        """Whether the connection stands."""
        if not self.stub.is_ready:
            self._channel.try_to_connect()
        return bool(self.stub.is_ready)

    def close(self) -> None:
        """Stops watching the connection, which ends with the last one who uses it."""
        self._channel.stop_watching()


class _Stub(tff.framework.RemoteExecutorGrpcStub):
    """TFF's stub; what stood on a worker that is gone has not to be let go there."""

    def dispose(self, request: Any) -> Any:
        with contextlib.suppress(grpc.RpcError):
            return super().dispose(request)


class _Channel:
    """A gRPC channel whose watcher, a thread that TFF's stub starts, can be ended."""

    def __init__(self, channel: grpc.Channel):
        self._channel = channel
        self._watchers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        self._watchers.append(callback)
        self._channel.subscribe(callback, try_to_connect)

    def try_to_connect(self) -> None:
        """After a broken connection gRPC rests until somebody subscribes again."""
        self._channel.subscribe(_ignore, try_to_connect=True)
        self._channel.unsubscribe(_ignore)

    def stop_watching(self) -> None:
        while self._watchers:
            self._channel.unsubscribe(self._watchers.pop())


class LocalWorker:
    """A worker process of this program's own, started again when it dies.

    Args:
      concurrent_calls: clients computed at a time, >= 1.
      inherited: file descriptors that the process gets, see `start_worker`.
    """

    name = "the local worker"

    def __init__(self, *, concurrent_calls: int, inherited: Sequence[int] = ()):
        self._concurrent_calls = concurrent_calls
        self._inherited = inherited
        self._lock = threading.Lock()
        self._restarts = 0
        self._closed = False
        self._worker: WorkerProcess | None = None
        self._connection: RemoteWorker | None = None

    @property
    def stub(self) -> Any:
        """TFF's stub; starts the process when none runs.

        Raises StateError when it cannot be started or has died too often.
        """
        with self._lock:
            if self._closed:
                raise StateError("TFF's worker was ended")
            if self._worker is None or self._worker.process.poll() is not None:
                self._start()
            return self._connection.stub if self._connection else None

    def is_ready(self) -> bool:
        """True: what has died is started again."""
        return True

    def close(self) -> None:
        """Ends the process and waits for it."""
        with self._lock:
            self._closed = True
            self._end()

    def _start(self) -> None:
        if self._worker is not None:
            status = self._worker.process.returncode
            if self._restarts == _MOST_RESTARTS:
                raise StateError(
                    f"TFF's worker ended with status {status} for the {_MOST_RESTARTS + 1}th time "
                    "(-9 is mostly the system's answer to a lack of memory: try a smaller "
                    "simulation.users_per_shard); started again, the run goes on"
                )
            self._restarts += 1
        self._end()
        self._worker = start_worker(
            concurrent_calls=self._concurrent_calls, inherited=self._inherited
        )
        self._connection = RemoteWorker(f"localhost:{self._worker.port}")
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._connection.stub.is_ready:
            if (status := self._worker.process.poll()) is not None:
                raise StateError(f"TFF's worker ended with status {status} at its start")
            if time.monotonic() > deadline:
                raise StateError(f"TFF's worker did not answer within {_START_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        if self._connection is not None:
            self._connection.close()


def _ignore(_: Any) -> None:
    pass


@contextlib.contextmanager
def connected(addresses: Sequence[str], *, timeout_s: float) -> Iterator[list[RemoteWorker]]:
    """Connections to `addresses` in their order, some perhaps not standing yet.

    Raises StateError naming all of them when none answers within `timeout_s`.
    """
    workers = [RemoteWorker(address) for address in addresses]
    try:
        deadline = time.monotonic() + timeout_s
        # Each is asked each time: asking is what makes it connect.
        while sum(worker.is_ready() for worker in workers) < len(workers):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        if not any(worker.is_ready() for worker in workers):
            raise StateError(
                f"no worker answers: {', '.join(addresses)} (waited {timeout_s:g} s); "
                "start one with dpfl worker --port PORT"
            )
        yield workers
    finally:
        for worker in workers:
            worker.close()
