"""TFF's worker process: started here, ended here.

Stock TFF starts `worker_binary` on first use and leaves it running when Python
ends by a signal or `os._exit`; it then holds the inherited stdout for ever.
Here the worker gets no inherited output, dies with its parent (also after
kill -9), and is ended and waited for on every way out. Imports no TensorFlow:
`dpfl worker` is up at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tf_dpfl.protocol.errors import StateError

_STOP_TIMEOUT_S = 10.0
# Becomes the worker, to be killed with its parent: prctl(PR_SET_PDEATHSIG, SIGKILL)
# outlasts exec. A program of its own, for in a forked child of a process with
# gRPC's threads no Python code is safe.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def usable_cores() -> int:
    """The cores this process may run on, >= 1."""
    return len(os.sched_getaffinity(0))


def start_worker(port: int, *, concurrent_calls: int) -> subprocess.Popen[bytes]:
    """Starts TFF's worker on `port` of every interface: it has no flag for less.

    Args:
      port: a free TCP port; with a taken one the worker runs and nobody reaches it.
      concurrent_calls: clients computed at a time, >= 1.

    Raises StateError when TFF's installation lacks the program.
    """
    spec = find_spec("tensorflow_federated")
    places = spec.submodule_search_locations if spec else None
    binary = Path(places[0] if places else "tensorflow_federated") / "data" / "worker_binary"
    if not binary.is_file():
        raise StateError(f"{binary}: TFF's worker is missing; install tensorflow-federated again")

    worker = [
        str(binary),
        f"--port={port}",
        f"--max_concurrent_computation_calls={concurrent_calls}",
    ]
    return subprocess.Popen(
        [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *worker],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches Python first, which then ends the worker
        env={
            # Each arena of the C library keeps what it was once given: with eight for
            # each core, as is its default, the worker grows for thousands of rounds.
            "MALLOC_ARENA_MAX": str(max(2, concurrent_calls)),
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )


def stop_worker(worker: subprocess.Popen[bytes]) -> None:
    """Ends the worker and waits until it is gone."""
    if worker.poll() is None:
        worker.kill()  # it keeps nothing that has to be saved
    worker.wait(_STOP_TIMEOUT_S)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def require_free_port(port: int) -> None:
    """Raises StateError when somebody listens on `port` already."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise StateError(f"port {port} cannot be used: {error.strerror}") from None
