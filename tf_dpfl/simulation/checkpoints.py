"""Checkpoints of a TFF state: whole files that resume a run exactly."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import write_atomically

CHECKPOINT_VERSION = 1
_NAME = re.compile(r"round_(\d{6,})\.npz\Z")
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error)
_KEPT = 2  # the newest, and the one before it in case of a damaged disk


def save_checkpoint(folder: Path, state: Any, *, round_number: int) -> Path:
    """Writes the state after `round_number` rounds and drops the oldest files."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {f"leaf_{i:04d}": np.asarray(v) for i, v in enumerate(tf.nest.flatten(state))}
    content = io.BytesIO()
    np.savez(
        content, version=np.int64(CHECKPOINT_VERSION), round_number=np.int64(round_number), **leaves
    )
    path = folder / f"round_{round_number:06d}.npz"
    write_atomically(path, content.getvalue())
    for _, old in _found(folder)[:-_KEPT]:
        old.unlink()
    return path


def load_newest_checkpoint(folder: Path, like: Any) -> tuple[int, Any] | None:
    """The newest checkpoint as (rounds done, state), or None when there is none.

    Args:
      folder: what `save_checkpoint` was given.
      like: a state of the same process, for structure, shapes and types.

    Raises:
      StateError: another version, or a state of another model or optimizer.
    """
    found = _found(folder)
    if not found:
        return None
    round_number, path = found[-1]
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            version = int(content["version"])
            leaves = [content[key] for key in sorted(content) if key.startswith("leaf_")]
    # zipfile and zlib raise further kinds on damaged bytes.
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, *_DAMAGED_ZIP) as error:
        raise StateError(
            f"{path}: not a readable checkpoint: {error}; remove it, and the run goes on from "
            "the one before it, or from its start"
        ) from None
    if version != CHECKPOINT_VERSION:
        raise StateError(
            f"{path}: version {version} is not readable here; this release reads "
            f"version {CHECKPOINT_VERSION}"
        )
    expected = [np.asarray(value) for value in tf.nest.flatten(like)]
    if [(v.shape, v.dtype) for v in leaves] != [(v.shape, v.dtype) for v in expected]:
        raise StateError(f"{path}: is of another model or server optimizer than this plan's")
    return round_number, tf.nest.pack_sequence_as(like, leaves)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """(round, path) of every checkpoint, oldest first."""
    files = folder.iterdir() if folder.is_dir() else ()
    matches = [(_NAME.match(path.name), path) for path in files]
    return sorted((int(match[1]), path) for match, path in matches if match)
