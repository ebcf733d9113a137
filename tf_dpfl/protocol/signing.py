"""Ed25519 keys and signatures, each bound to what it is for."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from tf_dpfl.protocol.errors import StateError, TaskError
from tf_dpfl.protocol.files import write_atomically

# A signature made for one purpose is worthless for the other.
MANIFEST_PURPOSE = b"tf_dpfl manifest v1\0"
REQUEST_PURPOSE = b"tf_dpfl request v1\0"


def public_key_hex(key: Ed25519PrivateKey) -> str:
    """The 32-byte public key as 64 hexadecimal digits."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return raw.hex()


def parse_public_key(text: str) -> Ed25519PublicKey:
    """Raises TaskError unless `text` is 64 hexadecimal digits."""
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text.strip()))
    except ValueError:
        raise TaskError(
            f"public key {text.strip()[:80]!r} is not an Ed25519 key of 64 hex digits"
        ) from None


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path` (PEM, mode 0600), made on first use."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, pem, mode=0o600)
        except OSError as error:
            raise StateError(f"{path}: the key cannot be written: {error}") from None
        return key
    except OSError as error:
        raise StateError(f"{path}: the key cannot be read: {error}") from None
    try:
        loaded = serialization.load_pem_private_key(raw, password=None)
    # TypeError: encrypted with a password; UnsupportedAlgorithm: a kind nobody knows.
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(f"{path}: not a bare PEM private key: {error}") from None
    if not isinstance(loaded, Ed25519PrivateKey):
        raise StateError(f"{path}: holds another kind of key than Ed25519")
    return loaded


def sign(key: Ed25519PrivateKey, message: bytes, *, purpose: bytes) -> str:
    """The signature of `message` as 128 hexadecimal digits."""
    return key.sign(purpose + message).hex()


def is_signed(
    public_key: Ed25519PublicKey, message: bytes, signature: str, *, purpose: bytes
) -> bool:
    """Whether `signature` (hex) is this key's over `message` for `purpose`."""
    try:
        public_key.verify(bytes.fromhex(signature), purpose + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def random_id() -> str:
    """A fresh 128-bit identifier as 32 hexadecimal digits."""
    return os.urandom(16).hex()
