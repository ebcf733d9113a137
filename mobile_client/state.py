"""A device's state folder: versioned files, each whole or absent after a crash.

    device.key      the Ed25519 key (PEM, 0600), made on first use
    device.json     which task this folder belongs to, enrolled or not
    manifest.json   the verified manifest, as signed
    client.tflite   the verified client file
    ledger.json     every report this device was charged for
    optimizer_state/  what the local optimizer goes on from, for plans that keep it
    outbox/         round_NNNNNN.bin: the exact bytes of a report not yet settled
    lock            held by the one process that uses the folder

Order within a round: outbox, ledger, network, ledger, outbox. A report is in
the outbox before it is charged and charged before it is sent, so a kill at any
point leaves at most one update of a round, and no sent one uncharged.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mobile_client.ledger import DeviceLedger
from mobile_client.optimizer_states import DeviceOptimizerStates
from tf_dpfl.protocol.errors import StateError, TaskError
from tf_dpfl.protocol.files import sha256_hex, sync_folder, write_atomically
from tf_dpfl.protocol.manifest import CLIENT_FILE, MANIFEST_FILE, Manifest, parse_manifest
from tf_dpfl.protocol.signing import load_or_create_key

STATE_VERSION = 1

KEY_FILE = "device.key"
DEVICE_FILE = "device.json"
LEDGER_FILE = "ledger.json"
OUTBOX_FOLDER = "outbox"
OPTIMIZER_STATE_FOLDER = "optimizer_state"
LOCK_FILE = "lock"

_PRIVATE = 0o600
_OUTBOX_NAME = re.compile(r"round_(\d+)\.bin\Z")


@dataclass(frozen=True)
class Binding:
    """The one task a state folder belongs to."""

    task_id: str
    manifest_sha256: str
    enrolled: bool = False


class StateFolder:
    """Reads and writes one device's folder; every write is durable on return."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, keeps other processes out, clears a crash's leftovers.

        Raises StateError when another process uses it or it can not be made.
        """
        try:
            (self.path / OUTBOX_FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, _PRIVATE)
        except OSError as error:
            raise StateError(f"{self.path}: not usable as a state folder: {error}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StateError(
                    f"{self.path}: another process uses this state folder; give each device "
                    "its own --state"
                ) from None
            self._remove_leftovers()
            yield
        finally:
            os.close(descriptor)

    def load_key(self) -> Ed25519PrivateKey:
        """This device's key, made on first use."""
        return load_or_create_key(self.path / KEY_FILE)

    def load_binding(self) -> Binding | None:
        """The task this folder belongs to; None in a fresh folder."""
        tree = self._read_json(DEVICE_FILE)
        if tree is None:
            if (self.path / LEDGER_FILE).exists() and self.load_ledger().count:
                raise StateError(
                    f"{self.path / DEVICE_FILE}: is missing although reports were charged; "
                    "restore it or use a new --state"
                )
            return None
        task_id, digest, enrolled = (
            tree.get(key) for key in ("task_id", "manifest_sha256", "enrolled")
        )
        if not (
            isinstance(task_id, str) and isinstance(digest, str) and isinstance(enrolled, bool)
        ):
            raise StateError(f"{self.path / DEVICE_FILE}: malformed; use a new --state")
        return Binding(task_id, digest, enrolled=enrolled)

    def bind(self, manifest: Manifest, raw: bytes) -> Binding:
        """Gives a fresh folder to one task; the binding itself is written last."""
        binding = Binding(manifest.task_id, sha256_hex(raw))
        self._write(MANIFEST_FILE, raw)
        self.save_ledger(DeviceLedger())
        self._save_binding(binding)
        return binding

    def mark_enrolled(self, binding: Binding) -> Binding:
        """Remembers that the server knows this device's key."""
        enrolled = replace(binding, enrolled=True)
        self._save_binding(enrolled)
        return enrolled

    def load_manifest(self, binding: Binding) -> Manifest:
        """The manifest this folder was bound to, as verified then."""
        path = self.path / MANIFEST_FILE
        raw = self._read(MANIFEST_FILE)
        if raw is None or sha256_hex(raw) != binding.manifest_sha256:
            raise StateError(f"{path}: is missing or was changed; use a new --state")
        try:
            return parse_manifest(raw)
        except TaskError as error:
            raise StateError(f"{path}: {error}") from None

    def load_client(self) -> bytes | None:
        """The client file's bytes, not verified; None when there is none."""
        return self._read(CLIENT_FILE)

    def save_client(self, model: bytes) -> None:
        """Keeps the verified client file."""
        self._write(CLIENT_FILE, model)

    def load_ledger(self) -> DeviceLedger:
        """The ledger of a bound folder; a missing or damaged one is an error."""
        path = self.path / LEDGER_FILE
        tree = self._read_json(LEDGER_FILE)
        if tree is None:
            raise StateError(
                f"{path}: is missing; without it the privacy spent is unknown: restore it or "
                "use a new --state"
            )
        try:
            return DeviceLedger.from_json(tree.get("reports"))
        except StateError as error:
            raise StateError(f"{path}: {error}") from None

    def save_ledger(self, ledger: DeviceLedger) -> None:
        """Replaces the ledger."""
        self._write_json(LEDGER_FILE, {"reports": ledger.to_json()})

    def outbox_rounds(self) -> list[int]:
        """Rounds whose report's bytes are kept, ascending."""
        names = [_OUTBOX_NAME.match(p.name) for p in (self.path / OUTBOX_FOLDER).glob("*")]
        return sorted(int(match.group(1)) for match in names if match)

    def load_report(self, round_number: int) -> bytes:
        """The exact bytes to send for that round."""
        raw = self._read(_outbox_name(round_number))
        if raw is None:
            raise StateError(f"{self.path / _outbox_name(round_number)}: is missing")
        return raw

    def save_report(self, round_number: int, body: bytes) -> None:
        """Keeps a new report. Raises StateError when the round has one already."""
        name = _outbox_name(round_number)
        if (self.path / name).exists():
            raise StateError(f"{self.path / name}: exists; a round has one report only")
        self._write(name, body)

    def remove_report(self, round_number: int) -> None:
        """Removes a settled report's bytes."""
        (self.path / _outbox_name(round_number)).unlink(missing_ok=True)
        sync_folder(self.path / OUTBOX_FOLDER)

    @property
    def optimizer_states(self) -> DeviceOptimizerStates:
        """What the local optimizer goes on from, for plans that keep it."""
        return DeviceOptimizerStates(self.path / OPTIMIZER_STATE_FOLDER)

    def _save_binding(self, binding: Binding) -> None:
        self._write_json(
            DEVICE_FILE,
            {
                "task_id": binding.task_id,
                "manifest_sha256": binding.manifest_sha256,
                "enrolled": binding.enrolled,
            },
        )

    def _remove_leftovers(self) -> None:
        """Half-written temporary files of `write_atomically`."""
        for folder in (self.path, self.path / OUTBOX_FOLDER):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.path / name}: can not be read: {error}") from None

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomically(self.path / name, data, mode=_PRIVATE)
        except OSError as error:
            raise StateError(f"{self.path / name}: can not be written: {error}") from None

    def _read_json(self, name: str) -> dict[str, Any] | None:
        """A versioned JSON object; None when the file is missing."""
        raw = self._read(name)
        if raw is None:
            return None
        path = self.path / name
        try:
            tree = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise StateError(f"{path}: damaged, not JSON: {error}") from None
        if not isinstance(tree, dict) or tree.get("version") != STATE_VERSION:
            version = tree.get("version") if isinstance(tree, dict) else None
            raise StateError(
                f"{path}: version {version!r} is not readable here; this release reads "
                f"version {STATE_VERSION}"
            )
        return tree

    def _write_json(self, name: str, tree: Mapping[str, Any]) -> None:
        text = json.dumps({"version": STATE_VERSION, **tree}, sort_keys=True, indent=1)
        self._write(name, text.encode() + b"\n")


def _outbox_name(round_number: int) -> str:
    return f"{OUTBOX_FOLDER}/round_{round_number:06d}.bin"
