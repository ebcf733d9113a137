"""Ctrl-C that no library can swallow.

Python raises KeyboardInterrupt wherever it happens to be: inside a garbage
collector's callback or a bare `except` of an import it is lost, and the command
would go on. So it is remembered, and raised again at the next event.
"""

from __future__ import annotations

import signal
import threading

_interrupted = threading.Event()


def remember_interrupts() -> None:
    """From now on SIGINT is remembered as well as raised.

    A process that was started with SIGINT ignored, or handles it in its own way,
    stays as it is.
    """
    _interrupted.clear()
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt when SIGINT came since `remember_interrupts`."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt
