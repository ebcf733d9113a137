"""Keeping the TensorFlow Lite converter's chatter off the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what is written to stdout and stderr while inside, C++ code included.

    The converter and the interpreter write to the file descriptors themselves,
    past Python's streams and past every logging level. File descriptors belong
    to the process: what other threads write meanwhile is dropped too.
    """
    logging_disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    _flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with tempfile.TemporaryFile() as sink:
            for number, _ in kept:
                os.dup2(sink.fileno(), number)
            try:
                yield
            finally:
                _flush()
                for number, copy in kept:
                    os.dup2(copy, number)
    finally:
        for _, copy in kept:
            os.close(copy)
        logging.disable(logging_disabled)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
