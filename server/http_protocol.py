"""HTTP as uvicorn reads it, with bounds on a request's head and refusals in JSON."""

from __future__ import annotations

import asyncio
import http
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# URL and headers of a device's request take about 500 bytes.
LARGEST_HEAD_BYTES = 64 << 10

_MALFORMED = (400, "this is not an HTTP/1.1 request; docs/wire.md says what is spoken here")
_CUT_OFF = (400, "the connection ended before the body did; send it again")


def bounded_http(*, head_timeout_s: float) -> type[HttpToolsProtocol]:
    """The protocol class of one server.

    A head longer than LARGEST_HEAD_BYTES is answered 431, one that is not here
    after `head_timeout_s` 408, malformed HTTP 400; the connection then closes.
    The parser alone would keep an endless head in memory, for ever.
    """

    class BoundedHttp(_BoundedHttp):
        timeout_s = head_timeout_s

    return BoundedHttp


class _BoundedHttp(HttpToolsProtocol):
    timeout_s: float

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._refusal = _MALFORMED
        self._reading_head = True
        self._head_bytes = 0
        self._head_only = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._reading_head and self._timer is None:
            self._start_timer()
        self._head_only = self._reading_head
        super().data_received(data)
        if self._head_only and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD_BYTES:
                self._refuse(*_too_long())

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A peer that has said everything may still read its answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return None
        if cycle.more_body and not cycle.response_started:
            self._refuse(*_CUT_OFF)
            return None
        return True

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > LARGEST_HEAD_BYTES:
            self._refusal = _too_long()
            raise ValueError("the parser stops here and send_400_response answers")
        self._reading_head = self._head_only = False
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """What the parser could not read is refused as everything else is."""
        self._refuse(*self._refusal)

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self._stop_timer()
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.timeout_s, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        message = f"the request was not here after {self.timeout_s:g} s; send it again"
        self._refuse(408, message)


def _too_long() -> tuple[int, str]:
    return 431, f"URL and headers are more than {LARGEST_HEAD_BYTES} bytes; send less"
