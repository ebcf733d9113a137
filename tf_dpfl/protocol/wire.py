"""The wire between device and server: paths, headers, messages and their checks.

`docs/wire.md` describes the protocol in prose. Vectors travel as raw
little-endian float32; everything else is small JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_dpfl.protocol.checks import LARGEST_INTEGER
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.tensors import Float32, vector_from_bytes

WIRE_VERSION = 1

ENROLL_PATH = "/v1/enroll"
TASK_PATH = "/v1/task"
CLIENT_PATH = "/v1/task/client.tflite"
CHECKIN_PATH = "/v1/checkin"
STATUS_PATH = "/v1/status"

VERSION_HEADER = "x-dpfl-version"
DEVICE_HEADER = "x-dpfl-device"
DIGEST_HEADER = "x-dpfl-digest"
SIGNATURE_HEADER = "x-dpfl-signature"

# Small JSON bodies: requests and replies other than task files and vectors.
LARGEST_JSON_BYTES = 64 << 10

_HEX = re.compile(r"[0-9a-f]+\Z")


def weights_path(round_number: int) -> str:
    """Where a round's weights are fetched."""
    return f"/v1/rounds/{round_number}/weights"


def update_path(round_number: int) -> str:
    """Where a round's update is put."""
    return f"/v1/rounds/{round_number}/update"


def request_message(*, task_id: str, method: str, path: str, digest: str) -> bytes:
    """The bytes a device signs for one request; `digest` is its body's SHA-256.

    A signed request can be repeated without harm: check-ins change nothing and
    an update is counted once however often it arrives.
    """
    return "\n".join((task_id, method, path, digest)).encode()


def is_hex(text: Any, *, digits: int) -> bool:
    """Whether `text` is a string of that many lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == digits and bool(_HEX.match(text))


def check_version(header: str | None) -> None:
    """Raises WireError unless the peer speaks this version."""
    if header != str(WIRE_VERSION):
        raise WireError(
            f"{VERSION_HEADER}: {header!r:.80} is not spoken here, version {WIRE_VERSION} is; "
            "update the older side",
            status=400,
        )


def parse_json(raw: bytes, *, what: str) -> dict[str, Any]:
    """A JSON object of at most LARGEST_JSON_BYTES; raises WireError otherwise."""
    if len(raw) > LARGEST_JSON_BYTES:
        raise WireError(f"{what}: more than {LARGEST_JSON_BYTES} bytes", status=413)
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        raise WireError(f"{what}: not JSON") from None
    if not isinstance(tree, dict):
        raise WireError(f"{what}: must be a JSON object")
    return tree


@dataclass(frozen=True)
class Enrollment:
    """A device's request to join: its one-time token and its public key (hex)."""

    token: str
    public_key: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"token": self.token, "public_key": self.public_key}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Enrollment:
        """Raises WireError on a missing or malformed entry."""
        token, key = tree.get("token"), tree.get("public_key")
        if not isinstance(token, str) or not 8 <= len(token) <= 128:
            raise WireError("enroll: token must be a string of 8 to 128 characters")
        if not is_hex(key, digits=64):
            raise WireError("enroll: public_key must be 64 lower-case hex digits")
        return cls(token, str(key))


@dataclass(frozen=True)
class Checkin:
    """The server's answer to a check-in.

    `state` is "train" (with all other fields), "wait" (ask again after
    `retry_after_s`) or "done" (the task has ended). `clip_norm` is the round's, named where
    it adapts and only there; `clip_norms.clip_norm_of_round` checks it.
    """

    state: str
    retry_after_s: float = 0.0
    round_number: int = 0
    weights_sha256: str = ""
    closes_in_s: float = 0.0
    clip_norm: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; only what the state needs."""
        if self.state == "wait":
            return {"state": "wait", "retry_after_s": self.retry_after_s}
        if self.state == "train":
            adapting = {} if self.clip_norm is None else {"clip_norm": self.clip_norm}
            return {
                "state": "train",
                "round_number": self.round_number,
                "weights_sha256": self.weights_sha256,
                "closes_in_s": self.closes_in_s,
                **adapting,
            }
        return {"state": self.state}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Checkin:
        """Raises WireError on an unknown state or a malformed entry."""
        state = tree.get("state")
        if state == "done":
            return cls("done")
        if state == "wait":
            return cls("wait", retry_after_s=_seconds(tree, "retry_after_s"))
        if state != "train":
            raise WireError(f"check-in: unknown state {state!r:.80}; update this device")
        number, digest = tree.get("round_number"), tree.get("weights_sha256")
        if type(number) is not int or not 1 <= number <= LARGEST_INTEGER:
            raise WireError(f"check-in: round_number={number!r:.80} must be an integer >= 1")
        if not is_hex(digest, digits=64):
            raise WireError("check-in: weights_sha256 must be 64 lower-case hex digits")
        return cls(
            "train",
            round_number=number,
            weights_sha256=str(digest),
            closes_in_s=_seconds(tree, "closes_in_s"),
            clip_norm=_clip_norm(tree) if "clip_norm" in tree else None,
        )


def decode_update(raw: bytes | bytearray, *, size: int, digest: str) -> Float32:
    """An upload's vector of shape [size], after length, digest and values were checked.

    Raises WireError with the status the server answers: 400 for a wrong length
    or digest, 422 for NaN or infinite entries.
    """
    if len(raw) != size * 4:
        raise WireError(f"update: {len(raw)} bytes, this task needs {size * 4}")
    if sha256_hex(raw) != digest:
        raise WireError(f"update: the body's SHA-256 is not the {DIGEST_HEADER} header's")
    vector = vector_from_bytes(raw, size=size)
    if not np.isfinite(vector).all():
        raise WireError("update: has NaN or infinite entries; nothing was added", status=422)
    return vector


def _clip_norm(tree: Mapping[str, Any]) -> float:
    value = tree["clip_norm"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e38:
        raise WireError(f"check-in: clip_norm={value!r:.80} must be a finite number > 0")
    return float(value)


def _seconds(tree: Mapping[str, Any], key: str) -> float:
    value = tree.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise WireError(f"check-in: {key}={value!r:.80} must be a number of seconds >= 0")
    return float(value)
