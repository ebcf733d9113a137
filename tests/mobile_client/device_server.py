"""A small server for the tests of the device: the wire protocol, strictly, in memory.

It is a second reading of docs/wire.md, so that the device is not tested against
the code that serves it; the end-to-end tests use the real server.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from device_task import SignedTask

from tf_dpfl.protocol import signing, wire
from tf_dpfl.protocol.files import sha256_hex

Answer = tuple[int, bytes]


class TestServer:
    """Invites every device to every round; a round ends when `close_round` says.

    `told` is put over the check-in answers that invite.

    `accepted[round][device]` is the counted body, `arrived` every body that
    came, `requests` all (method, path). `faults` maps "METHOD path" to a
    function from the true answer to the one that is sent. `on_update` sees
    each body as it arrives.
    """

    __test__ = False

    def __init__(self, task: SignedTask, *, rounds: int = 3, devices: int = 1):
        self.task = task
        self.rounds = rounds
        self.devices = devices
        self.round = 1
        self.keys: dict[str, Any] = {}
        self.tokens: dict[str, str] = {}
        self.accepted: dict[int, dict[str, bytes]] = {}
        self.arrived: list[tuple[str, int, bytes]] = []
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[str, Callable[[Answer], Answer]] = {}
        self.on_update: Callable[[str, int, bytes], None] = lambda *_: None
        self.retry_after_s = 0.01
        self.told: dict[str, Any] = {}
        self._lock = threading.Lock()

    def count(self, method: str, path: str) -> int:
        return self.requests.count((method, path))

    def transport(self) -> httpx.MockTransport:
        """A transport that answers without a socket."""

        def handle(request: httpx.Request) -> httpx.Response:
            status, body = self.answer(
                request.method, request.url.path, dict(request.headers), request.read()
            )
            return httpx.Response(status, stream=httpx.ByteStream(body))

        return httpx.MockTransport(handle)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        with self._lock:
            self.requests.append((method, path))
            if headers.get(wire.VERSION_HEADER) != "1":
                answer = _no(400, "version")
            else:
                answer = self._answer(method, path, headers, body)
            fault = self.faults.get(f"{method} {path}")
            return fault(answer) if fault else answer

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if (method, path) == ("GET", "/v1/task"):
            return _yes(manifest=self.task.raw.decode(), signature=self.task.signature)
        if (method, path) == ("POST", "/v1/enroll"):
            return self._enroll(json.loads(body))
        device = headers.get(wire.DEVICE_HEADER, "")
        if device not in self.keys:
            return _no(401, "unknown device")
        message = "\n".join((self.task.manifest.task_id, method, path, sha256_hex(body))).encode()
        if headers.get(wire.DIGEST_HEADER) != sha256_hex(body) or not signing.is_signed(
            self.keys[device],
            message,
            headers.get(wire.SIGNATURE_HEADER, ""),
            purpose=signing.REQUEST_PURPOSE,
        ):
            return _no(401, "signature")
        if (method, path) == ("GET", "/v1/task/client.tflite"):
            return 200, self.task.client
        if (method, path) == ("POST", "/v1/checkin"):
            return self._check_in(device)
        parts = path.split("/")
        if parts[:3] == ["", "v1", "rounds"] and parts[3].isdigit():
            number = int(parts[3])
            if (method, parts[4]) == ("GET", "weights"):
                return (200, self.task.weights_bytes) if number == self.round else _no(410, "gone")
            if (method, parts[4]) == ("PUT", "update"):
                return self._update(device, number, body)
        return _no(404, "no such path")

    def _enroll(self, tree: dict[str, str]) -> Answer:
        token, key = tree["token"], tree["public_key"]
        if self.tokens.setdefault(token, key) != key:
            return _no(403, "token was used by another key")
        device = sha256_hex(bytes.fromhex(key))[:32]
        self.keys[device] = signing.parse_public_key(key)
        return _yes(device_id=device)

    def _check_in(self, device: str) -> Answer:
        if self.round > self.rounds:
            return _yes(state="done")
        if device in self.accepted.get(self.round, {}):
            return _yes(state="wait", retry_after_s=self.retry_after_s)
        return _yes(
            state="train",
            round_number=self.round,
            weights_sha256=sha256_hex(self.task.weights_bytes),
            closes_in_s=60.0,
            **self.told,
        )

    def _update(self, device: str, number: int, body: bytes) -> Answer:
        self.arrived.append((device, number, body))
        self.on_update(device, number, body)
        counted = self.accepted.setdefault(number, {})
        if device in counted:
            same = counted[device] == body
            return _yes(accepted=True, repeated=True) if same else _no(409, "another update")
        if number != self.round:
            return _no(410, "the round has closed")
        counted[device] = body
        if len(counted) >= self.devices:
            self.round += 1
        return _yes(accepted=True, repeated=False)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Serves on a free port of 127.0.0.1; the value is the URL."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, answer = server.answer(self.command, self.path, headers, body)
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = _handle

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            http.server_close()
            thread.join()


def _yes(**tree: Any) -> Answer:
    return 200, json.dumps(tree).encode()


def _no(status: int, why: str) -> Answer:
    return status, json.dumps({"error": why}).encode()
