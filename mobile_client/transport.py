"""One device's requests to its server: bounded, signed, counted.

    WireError
    ├── Unreachable   no answer, or "later" (408, 425, 429, 5xx): worth another try
    └── Refused       the server's final no; `status` is its HTTP status

Downloads never take in more than what was declared, nothing is decompressed
and redirects are not followed. httpx is the seam: tests give it a transport.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tf_dpfl.protocol import signing, wire
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.manifest import LARGEST_MANIFEST_BYTES

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0
# Between two pieces of one answer; uploads may wait for the server's commit.
READ_TIMEOUT_S = 60.0
# A server that trickles must not hold a device for ever.
LONGEST_TRANSFER_S = 600.0

# The manifest travels as a JSON string: each of its bytes can take two.
_LARGEST_TASK_REPLY_BYTES = 2 * LARGEST_MANIFEST_BYTES + 4096
_LONGEST_MESSAGE = 300
_LATER = (408, 425, 429)


class Unreachable(WireError):
    """No usable answer now; the same request may be sent again.

    `retry_after_s` is the server's wish, 0 without one.
    """

    def __init__(self, message: str, *, status: int = 503, retry_after_s: float = 0.0):
        self.retry_after_s = retry_after_s
        super().__init__(message, status=status)


class Refused(WireError):
    """The server's final refusal of one request."""


@dataclass
class Traffic:
    """Bytes of request and answer bodies of one device, refused ones included."""

    up: int = 0
    down: int = 0


def open_client(server_url: str, *, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """An HTTP client for `server_url`; raises WireError unless that is http(s)://host.

    One client serves all devices of a process and is closed by the caller.
    """
    import httpx

    try:
        url = httpx.URL(server_url)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise WireError(f"server {server_url!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise WireError(f"server {server_url!r} must be a URL such as https://example.org:8443")
    return httpx.Client(
        base_url=url,
        transport=transport,
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        follow_redirects=False,
        headers={
            "accept-encoding": "identity",
            wire.VERSION_HEADER: str(wire.WIRE_VERSION),
        },
    )


class Link:
    """One device's side of the wire: its key, and the requests it may make."""

    def __init__(self, client: httpx.Client, key: Ed25519PrivateKey):
        self._client = client
        self._key = key
        self.public_key = signing.public_key_hex(key)
        self.device_id = sha256_hex(bytes.fromhex(self.public_key))[:32]
        self.traffic = Traffic()

    def fetch_task(self) -> tuple[bytes, str]:
        """The manifest's bytes and its signature (hex), neither verified yet."""
        raw = self._exchange("GET", wire.TASK_PATH, largest=_LARGEST_TASK_REPLY_BYTES)
        try:
            tree = json.loads(raw)
        except (ValueError, RecursionError):
            raise WireError("task: the server's answer is not JSON") from None
        manifest = tree.get("manifest") if isinstance(tree, dict) else None
        signature = tree.get("signature") if isinstance(tree, dict) else None
        if not isinstance(manifest, str) or not isinstance(signature, str):
            raise WireError("task: the server's answer lacks manifest or signature")
        return manifest.encode("utf-8", "surrogatepass"), signature

    def fetch_client(self, *, task_id: str, size: int) -> bytes:
        """`client.tflite`, at most `size` bytes, not verified yet."""
        path = wire.CLIENT_PATH
        return self._exchange(
            "GET", path, headers=self._signed("GET", path, b"", task_id), largest=size
        )

    def enroll(self, token: str) -> None:
        """Joins with a one-time token; repeating it with the same key is harmless.

        Raises WireError when the server knows this device by another id.
        """
        body = json.dumps(wire.Enrollment(token, self.public_key).to_json()).encode()
        raw = self._exchange(
            "POST",
            wire.ENROLL_PATH,
            body=body,
            headers={"content-type": "application/json"},
            largest=wire.LARGEST_JSON_BYTES,
        )
        answered = wire.parse_json(raw, what="enroll").get("device_id")
        if answered != self.device_id:
            raise WireError(
                f"enroll: the server answered device_id={answered!r}, this device's key "
                f"gives {self.device_id}"
            )

    def check_in(self, *, task_id: str) -> wire.Checkin:
        """What the server wants of this device now."""
        path = wire.CHECKIN_PATH
        raw = self._exchange(
            "POST",
            path,
            headers=self._signed("POST", path, b"", task_id),
            largest=wire.LARGEST_JSON_BYTES,
        )
        return wire.Checkin.from_json(wire.parse_json(raw, what="check-in"))

    def fetch_weights(self, *, task_id: str, round_number: int, size: int) -> bytes:
        """A round's weights, at most `size` bytes, not verified yet."""
        path = wire.weights_path(round_number)
        return self._exchange(
            "GET", path, headers=self._signed("GET", path, b"", task_id), largest=size
        )

    def send_update(self, *, task_id: str, round_number: int, body: bytes) -> None:
        """Uploads one round's report; the same bytes may be sent any number of times."""
        path = wire.update_path(round_number)
        headers = {
            "content-type": "application/octet-stream",
            **self._signed("PUT", path, body, task_id),
        }
        self._exchange("PUT", path, body=body, headers=headers, largest=wire.LARGEST_JSON_BYTES)

    def _signed(self, method: str, path: str, body: bytes, task_id: str) -> dict[str, str]:
        digest = sha256_hex(body)
        message = wire.request_message(task_id=task_id, method=method, path=path, digest=digest)
        return {
            wire.DEVICE_HEADER: self.device_id,
            wire.DIGEST_HEADER: digest,
            wire.SIGNATURE_HEADER: signing.sign(
                self._key, message, purpose=signing.REQUEST_PURPOSE
            ),
        }

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        largest: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """One request; the body of a 2xx answer of at most `largest` bytes."""
        import httpx

        self.traffic.up += len(body)
        try:
            with self._client.stream(
                method, path, content=body or None, headers=dict(headers or {})
            ) as response:
                if not response.is_success:
                    answer = self._read(response, wire.LARGEST_JSON_BYTES, f"{method} {path}")
                    raise _refusal(f"{method} {path}", response, answer)
                return self._read(response, largest, f"{method} {path}")
        except httpx.TransportError as error:
            raise Unreachable(
                f"{method} {self._client.base_url.join(path)}: {str(error) or type(error).__name__}"
            ) from None
        except httpx.HTTPError as error:
            raise WireError(f"{method} {path}: {error}") from None

    def _read(self, response: httpx.Response, largest: int, what: str) -> bytes:
        """The body as sent; WireError as soon as it exceeds `largest` bytes."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise WireError(f"{what}: the answer is compressed; this device did not ask for it")
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > largest:
            raise WireError(f"{what}: an answer of {declared} bytes, at most {largest} expected")
        ends_s = time.monotonic() + LONGEST_TRANSFER_S
        parts = []
        received = 0
        for part in response.iter_raw():
            received += len(part)
            self.traffic.down += len(part)
            if received > largest:
                raise WireError(f"{what}: the answer is longer than the {largest} bytes expected")
            if time.monotonic() > ends_s:
                raise Unreachable(f"{what}: not complete after {LONGEST_TRANSFER_S:g} s")
            parts.append(part)
        return b"".join(parts)


def _refusal(what: str, response: httpx.Response, answer: bytes) -> WireError:
    """The error that a non-2xx answer means."""
    status = response.status_code
    try:
        said = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = answer.decode("utf-8", "replace")
    said = "".join(c if c.isprintable() else " " for c in str(said))[:_LONGEST_MESSAGE]
    message = f"{what}: the server answered {status}: {said or response.reason_phrase}"
    if status >= 500 or status in _LATER:
        wish = response.headers.get("retry-after", "")
        seconds = float(wish) if wish.isdigit() and len(wish) < 6 else 0.0
        return Unreachable(message, status=status, retry_after_s=seconds)
    return Refused(message, status=status)
