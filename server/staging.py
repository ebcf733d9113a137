"""Staging: request bodies held in bounded memory until they are whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from tf_dpfl.protocol import wire
from tf_dpfl.protocol.errors import WireError

# Memory all staged uploads may take together, and the number of places it is
# divided into at most and at least.
_STAGED_BYTES = 256 << 20
_MOST_PLACES, _FEWEST_PLACES = 256, 2


def content_length(request: Request) -> int:
    """The declared length; WireError 411 without one, 400 when it is not a number."""
    text = request.headers.get("content-length")
    if text is None:
        raise WireError("Content-Length is missing; send the body's length", status=411)
    if not (text.isascii() and text.isdigit()):
        raise WireError(f"Content-Length {text[:40]!r} is not a number of bytes")
    return int(text)


async def read_small_body(request: Request, *, timeout_s: float) -> bytes:
    """A body of at most LARGEST_JSON_BYTES, whose length need not be declared.

    Raises WireError 413 when it is longer, 408 when it is late.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > wire.LARGEST_JSON_BYTES:
                    raise WireError(
                        f"more than {wire.LARGEST_JSON_BYTES} bytes; send less", status=413
                    )
    except TimeoutError:
        raise _late(timeout_s) from None
    return bytes(body)


class Staging:
    """A limited number of places for bodies of one size, `nbytes`."""

    def __init__(self, *, nbytes: int, timeout_s: float):
        self._nbytes = nbytes
        self._timeout_s = timeout_s
        places = min(max(_STAGED_BYTES // max(nbytes, 1), _FEWEST_PLACES), _MOST_PLACES)
        self._places = asyncio.Semaphore(places)

    def check_length(self, request: Request) -> None:
        """Raises WireError unless the declared length is the one this task needs."""
        length = content_length(request)
        if length > self._nbytes:
            raise WireError(
                f"update: {length} bytes, this task needs {self._nbytes}; nothing was read",
                status=413,
            )
        if length < self._nbytes:
            raise WireError(f"update: {length} bytes, this task needs {self._nbytes}")

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One place, free again when the block ends. WireError 503 when none gets free."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise WireError(
                "no place to take an update now; send it again after Retry-After", status=503
            ) from None
        try:
            yield
        finally:
            self._places.release()

    async def read(self, request: Request) -> bytearray:
        """The whole body of `nbytes` bytes.

        Raises WireError 408 when it is not whole in time, 400 when it ends early.
        """
        body = bytearray(self._nbytes)
        filled = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in request.stream():
                    stop = filled + len(chunk)
                    if stop > self._nbytes:
                        raise WireError("update: longer than its Content-Length")
                    body[filled:stop] = chunk
                    filled = stop
        except TimeoutError:
            raise _late(self._timeout_s) from None
        except ClientDisconnect:
            raise WireError("update: the connection ended before the body did") from None
        if filled != self._nbytes:
            raise WireError(f"update: {filled} bytes arrived of {self._nbytes}; send it again")
        return body


def _late(timeout_s: float) -> WireError:
    return WireError(f"the body was not here after {timeout_s:g} s; send it again", status=408)
