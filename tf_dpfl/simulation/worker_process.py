"""TFF's worker process: started here, ended here.

Stock TFF starts `worker_binary` on first use and leaves it running when Python
ends by a signal or `os._exit`; it then holds the inherited stdout for ever, and
takes work from whoever reaches it on any interface. Here the worker gets no
inherited output, dies with its parent (also after kill -9), is reached on one
address alone where the system lets that be arranged, and is waited for on every
way out. Imports no TensorFlow: `dpfl worker` is up at once.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tf_dpfl.protocol.errors import StateError

LOOPBACK = "127.0.0.1"

_STOP_TIMEOUT_S = 10.0
_RELAY = [sys.executable, "-IS", str(Path(__file__).parent / "worker_relay.py")]
_INNER_PORT = 10_000  # the worker's own, in a network where it is alone
# Becomes the worker, to be killed with its parent: prctl(PR_SET_PDEATHSIG, SIGKILL)
# outlasts exec. A program of its own, for in a forked child of a process with
# gRPC's threads no Python code is safe.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class WorkerProcess:
    """A running worker: its process, its TCP port, and whether every interface has it."""

    process: subprocess.Popen[bytes]
    port: int
    on_every_interface: bool

    def stop(self) -> None:
        """Ends the worker and waits until it is gone."""
        if self.process.poll() is None:
            self.process.kill()  # it keeps nothing that has to be saved
        self.process.wait(_STOP_TIMEOUT_S)


def usable_cores() -> int:
    """The cores this process may run on, >= 1."""
    return len(os.sched_getaffinity(0))


@functools.cache
def can_be_kept_apart() -> bool:
    """Whether this system lets a worker have a network of its own (user namespaces)."""
    return subprocess.run(_RELAY, stderr=subprocess.DEVNULL).returncode == 0


def start_worker(
    port: int = 0,
    *,
    concurrent_calls: int,
    host: str = LOOPBACK,
    inherited: Sequence[int] = (),
) -> WorkerProcess:
    """Starts TFF's worker.

    Args:
      port: the TCP port it is reached on; 0 takes a free one.
      concurrent_calls: clients computed at a time, >= 1.
      host: the address it is reached on. Every interface instead where
        `can_be_kept_apart` is false: the worker has no flag for less.
      inherited: file descriptors that the worker gets under the same numbers, to
        read as /proc/self/fd/N. (What another process has open under /proc may be
        closed to it, in a user namespace of its own.)

    Raises StateError when the address cannot be used, or TFF's installation lacks
    the program.
    """
    spec = find_spec("tensorflow_federated")
    places = spec.submodule_search_locations if spec else None
    binary = Path(places[0] if places else "tensorflow_federated") / "data" / "worker_binary"
    if not binary.is_file():
        raise StateError(f"{binary}: TFF's worker is missing; install tensorflow-federated again")
    apart = can_be_kept_apart()
    with _listening(host if apart else "0.0.0.0", port) as listener:
        port = listener.getsockname()[1]
        me, descriptor = str(os.getpid()), listener.fileno()
        worker = [str(binary), f"--max_concurrent_computation_calls={concurrent_calls}"]
        if apart:
            command = [*_RELAY, me, str(descriptor), str(_INNER_PORT), *worker]
            command.append(f"--port={_INNER_PORT}")
        else:
            command = [sys.executable, "-ISc", _DIE_WITH_PARENT, me, *worker, f"--port={port}"]
            listener.close()
        process = subprocess.Popen(
            command,
            pass_fds=[*inherited, descriptor] if apart else inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches Python first, which then ends the worker
            env={
                # Each arena of the C library keeps what it was once given: with eight for
                # each core, as is its default, the worker grows for thousands of rounds.
                "MALLOC_ARENA_MAX": str(max(2, concurrent_calls)),
                # A shard for each core: its small operations shared out over threads
                # would only wait for one another.
                "TF_NUM_INTRAOP_THREADS": "1",
                "TF_NUM_INTEROP_THREADS": str(concurrent_calls),
                # By default TensorFlow makes oneDNN's gradients of a convolution anew at every
                # step; kept, they save a tenth of a small CNN's time.
                "TF_MKL_OPTIMIZE_PRIMITIVE_MEMUSE": "false",
                **os.environ,
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
        )
    return WorkerProcess(process, port, on_every_interface=not apart)


def _listening(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        return listener
    except (OSError, UnicodeError, TypeError) as error:  # a name that is none raises the others
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise StateError(f"{host} port {port} cannot be listened on: {reason}") from None
