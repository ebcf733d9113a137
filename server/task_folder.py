"""The task a server runs: read, verified, and copied into its state once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tf_dpfl.protocol.errors import StateError, TaskError
from tf_dpfl.protocol.files import sha256_hex, sync_folder, write_atomically
from tf_dpfl.protocol.manifest import (
    CLIENT_FILE,
    KERAS_FILE,
    LARGEST_MANIFEST_BYTES,
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    Manifest,
    verify_manifest,
)


@dataclass(frozen=True)
class ServedTask:
    """A verified task: the manifest as signed, and the bytes devices fetch."""

    manifest: Manifest
    manifest_bytes: bytes
    signature: str
    public_key: str
    client: bytes
    initial_weights: bytes


def load_task(folder: Path) -> ServedTask:
    """Reads `folder` and checks the signature and every file's size and digest.

    Raises TaskError naming the file that is missing or wrong.
    """
    public_key = _read(folder / PUBLIC_KEY_FILE, largest=1 << 10).decode("ascii", "replace")
    signature = _read(folder / SIGNATURE_FILE, largest=1 << 10).decode("ascii", "replace").strip()
    raw = _read(folder / MANIFEST_FILE, largest=LARGEST_MANIFEST_BYTES)
    try:
        manifest = verify_manifest(raw, signature, public_key=public_key)
    except TaskError as error:
        raise TaskError(f"{folder}: {error}") from None
    contents = {}
    for name, digest in manifest.files.items():
        data = _read(folder / name, largest=digest.size)
        try:
            digest.check(name, data)
        except TaskError as error:
            raise TaskError(f"{folder}: {error}") from None
        contents[name] = data
    return ServedTask(
        manifest=manifest,
        manifest_bytes=raw,
        signature=signature,
        public_key=public_key.strip(),
        client=contents[CLIENT_FILE],
        initial_weights=contents[WEIGHTS_FILE],
    )


def adopt_task(source: Path, *, state: Path) -> ServedTask:
    """The task of `state`, copied from `source` when the state has none yet.

    A state keeps its first task for ever: raises StateError when `source` is
    another one, TaskError when either copy does not verify.
    """
    home = state / "task"
    offered = load_task(source)
    if not home.exists():
        _copy(source, home, offered)
    kept = load_task(home)
    if kept.manifest_bytes != offered.manifest_bytes:
        raise StateError(
            f"{state} holds task {kept.manifest.task_id}, {source} is task "
            f"{offered.manifest.task_id}; give another --state for another task"
        )
    return kept


def _copy(source: Path, home: Path, task: ServedTask) -> None:
    """Copies the files already verified; `home` appears whole or not at all."""
    temporary = home.with_name(f".task.{os.urandom(6).hex()}.tmp")
    temporary.mkdir(parents=True)
    verified = {
        MANIFEST_FILE: task.manifest_bytes,
        SIGNATURE_FILE: task.signature.encode() + b"\n",
        PUBLIC_KEY_FILE: task.public_key.encode() + b"\n",
        CLIENT_FILE: task.client,
        WEIGHTS_FILE: task.initial_weights,
        KERAS_FILE: (source / KERAS_FILE).read_bytes(),
    }
    for name, data in verified.items():
        write_atomically(temporary / name, data)
    sync_folder(temporary)
    os.rename(temporary, home)
    sync_folder(home.parent)


def _read(path: Path, *, largest: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > largest:
            raise TaskError(f"{path}: {size} bytes, at most {largest} are expected")
        return path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"{path}: {error.strerror or error}; a task folder comes from dpfl export client"
        ) from None


def digest_of(task: ServedTask) -> str:
    """What ties a database to its task: the manifest's SHA-256."""
    return sha256_hex(task.manifest_bytes)
