"""The signed digest beside an exported model: whose file it is, and that it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tf_dpfl.protocol import signing
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.manifest import FileDigest

DIGEST_VERSION = 1
MODEL_PURPOSE = b"tf_dpfl model v1\0"

# The entry of a card that the exporter adds: file -> SHA-256 of each model beside it.
CARD_FILES_KEY = "model_files"


def digest_path(model: Path) -> Path:
    """`OUT.digest.json` of the model file or folder OUT."""
    return model.with_name(model.name + ".digest.json")


def model_digests(model: Path) -> dict[str, FileDigest]:
    """Name (relative to the model's folder) -> digest of its file or files."""
    if not model.is_dir():
        return {model.name: FileDigest.of(model.read_bytes())}
    return {
        str(path.relative_to(model.parent).as_posix()): FileDigest.of(path.read_bytes())
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }


def card_digest(card: Mapping[str, Any]) -> str:
    """SHA-256 of the card without the list of models beside it."""
    stated = {key: value for key, value in card.items() if key != CARD_FILES_KEY}
    return sha256_hex(json.dumps(stated, sort_keys=True, separators=(",", ":")).encode())


def sign_digest(
    key: Ed25519PrivateKey, files: Mapping[str, FileDigest], card: Mapping[str, Any]
) -> bytes:
    """The content of the digest file for `files` and the privacy `card`."""
    statement = {
        "version": DIGEST_VERSION,
        "files": {n: {"size": d.size, "sha256": d.sha256} for n, d in files.items()},
        "privacy_card_sha256": card_digest(card),
    }
    signature = signing.sign(key, _canonical(statement), purpose=MODEL_PURPOSE)
    tree = {**statement, "signature": signature, "public_key": signing.public_key_hex(key)}
    return json.dumps(tree, indent=2).encode() + b"\n"


def verify_model_digest(model: Path, card: Path, *, public_key: str) -> None:
    """Checks the digest beside `model`.

    Raises TaskError unless it is signed by `public_key` (hex) and fits the
    model's files and the privacy card in the file `card`.
    """
    path = digest_path(model)
    try:
        tree = json.loads(path.read_bytes())
        stated = json.loads(card.read_bytes())
        statement = {key: tree[key] for key in ("version", "files", "privacy_card_sha256")}
        signature = str(tree["signature"])
        expected = {name: FileDigest(d["size"], d["sha256"]) for name, d in tree["files"].items()}
        card_sha256 = card_digest(stated)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskError(f"{path}: missing or malformed: {error!r}") from None
    key = signing.parse_public_key(public_key)
    if not signing.is_signed(key, _canonical(statement), signature, purpose=MODEL_PURPOSE):
        raise TaskError(f"{path}: the signature is not by this public key")
    if statement["version"] != DIGEST_VERSION:
        raise TaskError(f"{path}: version {statement['version']!r} is not readable here")
    if model_digests(model) != expected:
        raise TaskError(f"{model}: its files are not those of {path.name}")
    if card_sha256 != statement["privacy_card_sha256"]:
        raise TaskError(f"{card}: it is not the card of {path.name}")


def _canonical(statement: Mapping[str, Any]) -> bytes:
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
