"""Files that are whole or absent after a crash, and their digests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_TAIL_BYTES = 65_536  # longer than most lines


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(
    path: Path, data: bytes | bytearray | memoryview, *, mode: int = 0o644
) -> None:
    """Writes `path` so that a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line_durably(path: Path, line: str) -> None:
    """Appends one line and waits until it is on disk; a torn last line is dropped first.

    Raises ValueError when `line` holds a line end.
    """
    if "\n" in line:
        raise ValueError(f"{line!r:.80} is more than one line")
    created = not path.exists()
    drop_torn_line(path)
    with open(path, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if created:
        sync_folder(path.parent)


def drop_torn_line(path: Path) -> None:
    """Cuts off what follows the last line end: a crash ended that line's writing.

    Whoever wrote it had not been told that it is durable, so nothing rests on it.
    """
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        whole = end
        # From the end on: reading all of a long log for each line would add up.
        while whole > 0:
            start = max(0, whole - _TAIL_BYTES)
            file.seek(start)
            last = file.read(whole - start).rfind(b"\n")
            whole = start + last + 1
            if last >= 0:
                break
        if whole < end:
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())
