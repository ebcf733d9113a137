"""A program: runs a worker in a network of its own, reached through one given socket.

TFF's worker listens on every interface and has no flag to change that. Here it is
started in a fresh network namespace, where there is nothing but a loopback, and
the connections to a socket that was opened outside are passed on to it. Only the
standard library is imported, so that the program starts in hundredths of a second:

  python -I -S worker_relay.py PARENT_PID LISTENER_FD INNER_PORT WORKER ARGUMENT...
  python -I -S worker_relay.py            (exit status 0: namespaces can be had here)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import threading
import time

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
_BUFFER_BYTES = 1 << 20
_TRY_AGAIN_S = 0.02
_LIBC = ctypes.CDLL(None, use_errno=True)


def enter_own_network() -> None:
    """Moves this process into a new network namespace, its loopback up.

    Raises OSError where the system does not allow it (some containers).
    """
    uid, gid = os.getuid(), os.getgid()
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        # Without privileges a user namespace brings those over its own network.
        if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", uid), ("gid_map", gid)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text if isinstance(text, str) else f"{text} {text} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def main() -> None:
    """Runs the worker until it or the parent ends; ends as the worker does."""
    enter_own_network()
    if len(sys.argv) == 1:
        return
    parent, listener_fd, inner_port = map(int, sys.argv[1:4])
    # After the namespaces: entering them takes it back.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    relay = os.getpid()
    worker = os.fork()
    if worker == 0:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == relay:
            os.execv(sys.argv[4], sys.argv[4:])
        os._exit(1)
    listener = socket.socket(fileno=listener_fd)
    threading.Thread(target=_accept, args=(listener, inner_port), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(relay, -status)
    os._exit(status)


def _accept(listener: socket.socket, inner_port: int) -> None:
    """Passes every connection on; those made before the worker listens wait for it."""
    while True:
        outside, _ = listener.accept()
        inside = _connected(inner_port)
        for a, b in ((outside, inside), (inside, outside)):
            a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=(a, b), daemon=True).start()


def _connected(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(_TRY_AGAIN_S)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until one side ends; then both end."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
