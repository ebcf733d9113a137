"""Admission: which device is who, and which device is invited to a round."""

from __future__ import annotations

import hashlib
import hmac
import random
import secrets
from collections.abc import Callable, Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tf_dpfl.protocol import signing, wire
from tf_dpfl.protocol.errors import TaskError, WireError
from tf_dpfl.protocol.files import sha256_hex

EMPTY_DIGEST = sha256_hex(b"")


def new_token() -> str:
    """A one-time token of 128 random bits, in hex: a leading "-" would read as an option."""
    return secrets.token_hex(16)


def token_digest(token: str) -> str:
    """What the store keeps of a token: it cannot be used by who reads the store."""
    return sha256_hex(token.encode("utf-8", "surrogatepass"))  # JSON can hold half a character


def device_id_of(public_key: str) -> str:
    """The device's id: 32 hex digits of SHA-256 over its raw public key (64 hex digits)."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]


def is_poisson_invited(
    device_id: str, *, secret: bytes, clients_per_round: int, population: int
) -> bool:
    """Whether the device is in the round's Poisson sample.

    True with probability clients_per_round / population over a uniform
    `secret`, independently for each device: HMAC-SHA256 as a random function.
    It can be asked for a device that enrols after the round was opened, and
    gives the same answer after a crash.
    """
    drawn = hmac.new(secret, device_id.encode(), hashlib.sha256).digest()
    return int.from_bytes(drawn, "big") * population < clients_per_round << 256


def draw_fixed(
    devices: Collection[str],
    *,
    clients_per_round: int,
    generator: random.Random | None = None,
) -> frozenset[str]:
    """Exactly `clients_per_round` devices, uniform without replacement.

    `generator` is the operating system's unless a test gives another one.
    """
    source = generator or random.SystemRandom()
    return frozenset(source.sample(sorted(devices), clients_per_round))


def check_public_key(public_key: str) -> Ed25519PublicKey:
    """Raises WireError unless the 64 hex digits are an Ed25519 key."""
    try:
        return signing.parse_public_key(public_key)
    except TaskError as error:
        raise WireError(f"enroll: {error}; send the key made by this device") from None


def authenticate(
    headers: Mapping[str, str],
    *,
    task_id: str,
    method: str,
    path: str,
    key_of: Callable[[str], Ed25519PublicKey | None],
) -> tuple[str, str]:
    """The signing device's id and the body digest it signed.

    Raises WireError: 400 for malformed headers, 401 for an unknown device or a
    signature that is not this device's over exactly this request and task.
    """
    device_id = headers.get(wire.DEVICE_HEADER, "")
    digest = headers.get(wire.DIGEST_HEADER, "")
    signature = headers.get(wire.SIGNATURE_HEADER, "")
    if not wire.is_hex(device_id, digits=32):
        raise WireError(f"{wire.DEVICE_HEADER} must be 32 lower-case hex digits; enrol first")
    if not wire.is_hex(digest, digits=64):
        raise WireError(f"{wire.DIGEST_HEADER} must be the body's SHA-256 in 64 hex digits")
    if not wire.is_hex(signature, digits=128):
        raise WireError(f"{wire.SIGNATURE_HEADER} must be 128 lower-case hex digits")
    key = key_of(device_id)
    if key is None:
        raise WireError(f"device {device_id} is not enrolled here; enrol with a token", status=401)
    message = wire.request_message(task_id=task_id, method=method, path=path, digest=digest)
    if not signing.is_signed(key, message, signature, purpose=signing.REQUEST_PURPOSE):
        raise WireError(
            f"the signature is not device {device_id}'s over this request for task {task_id}; "
            "sign method, path and body digest with the enrolled key",
            status=401,
        )
    return device_id, digest
