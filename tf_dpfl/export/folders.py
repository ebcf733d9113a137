"""Reading a run or a server's state, and writing a folder whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_dpfl.privacy.card import CARD_VERSION
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import sync_folder, write_atomically

# The names in a run folder that the exporter reads.
PLAN_FILE = "plan.toml"
MODEL_FILE = "model.keras"
CARD_FILE = "privacy.json"
METRICS_FILE = "metrics.jsonl"


def require_files(folder: Path, names: tuple[str, ...], *, what: str) -> None:
    """Raises StateError naming every one of `names` that `folder` has not."""
    if not folder.is_dir():
        raise StateError(f"{folder}: no such folder; expected {what}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise StateError(f"{folder}: {', '.join(missing)} missing; it is not {what}")


def read_json(path: Path) -> Mapping[str, Any]:
    """The JSON object in `path`; StateError when there is none."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise StateError(f"{path}: must hold a JSON object")
    return tree


def read_card(path: Path) -> Mapping[str, Any]:
    """The privacy card in `path`; StateError when it is none of this release."""
    card = read_json(path)
    if card.get("version") != CARD_VERSION or isinstance(card["version"], bool):
        raise StateError(f"{path}: version={card.get('version')!r:.80} must be {CARD_VERSION}")
    if not isinstance(card.get("central"), dict) or not isinstance(card.get("spending"), list):
        raise StateError(
            f"{path}: not a privacy card, central or spending is missing; run the same "
            "simulate or server command again, it writes the card anew"
        )
    return card


def read_last_clip_norm(run: Path) -> float:
    """The clip norm of the last round of a run in which it adapts; StateError when unknown."""
    path = run / METRICS_FILE
    try:
        value = json.loads(path.read_bytes().splitlines()[-1])["clip_norm"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: no clip_norm of a last round in it: {error!r}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StateError(f"{path}: clip_norm={value!r:.80} must be a number")
    return float(value)


def require_free(out: Path) -> None:
    """Raises StateError unless `out` does not exist or is an empty folder."""
    if out.is_dir() and not out.is_symlink():
        if any(out.iterdir()):
            raise StateError(f"{out}: exists and is not empty; name a new folder")
    elif out.exists() or out.is_symlink():
        raise StateError(f"{out}: exists and is not a folder; name a new folder")


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Writes all `files` (name -> content) to the new folder `out`, or none of them."""
    require_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.urandom(6).hex()}.tmp")
        temporary.mkdir()
    except OSError as error:
        raise StateError(f"{out}: cannot be made: {error}") from None
    try:
        for name, content in files.items():
            write_atomically(temporary / name, content)
        os.replace(temporary, out)  # an empty folder in its place is replaced
    except OSError as error:
        raise StateError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(out.parent)
