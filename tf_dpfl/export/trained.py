"""Reading a trained model from a simulation run or from a server's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow as tf

from models.keeping import load_keras
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export.folders import CARD_FILE, MODEL_FILE, read_card, read_json, require_files
from tf_dpfl.protocol.errors import StateError, TaskError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.manifest import KERAS_FILE, MANIFEST_FILE, parse_manifest
from tf_dpfl.protocol.tensors import Float32, vector_from_bytes

LATEST_FILE = "latest.json"
LATEST_VERSION = 1
TASK_FOLDER = "task"


@dataclass(frozen=True)
class TrainedModel:
    """A model with the newest released weights, and its privacy card (plain JSON)."""

    model: tf.keras.Model
    card: Mapping[str, Any]


def load_trained(run_or_state: Path) -> TrainedModel:
    """The newest released model in a RUN folder or a server's STATE folder.

    Raises StateError when files are missing, broken, or do not belong together.
    """
    if (run_or_state / TASK_FOLDER).is_dir() or (run_or_state / LATEST_FILE).is_file():
        return _load_state(run_or_state)
    what = "a run of dpfl simulate or a state of dpfl-server"
    require_files(run_or_state, (MODEL_FILE, CARD_FILE), what=what)
    return TrainedModel(load_keras(run_or_state / MODEL_FILE), read_card(run_or_state / CARD_FILE))


def _load_state(state: Path) -> TrainedModel:
    require_files(
        state,
        (LATEST_FILE, CARD_FILE, f"{TASK_FOLDER}/{MANIFEST_FILE}", f"{TASK_FOLDER}/{KERAS_FILE}"),
        what="a state of dpfl-server that has released a round",
    )
    keras_path = state / TASK_FOLDER / KERAS_FILE
    try:
        manifest = parse_manifest((state / TASK_FOLDER / MANIFEST_FILE).read_bytes())
        manifest.files[KERAS_FILE].check(KERAS_FILE, keras_path.read_bytes())
    except TaskError as error:
        raise StateError(f"{state / TASK_FOLDER}: {error}") from None
    model = load_keras(keras_path)
    if layout_of(model) != manifest.layout:
        raise StateError(f"{keras_path}: its weights are not those of the manifest's layout")
    weights = _latest_weights(state, size=manifest.layout.size)
    for variable, value in zip(model.trainable_variables, manifest.layout.split(weights)):
        variable.assign(value)
    return TrainedModel(model, read_card(state / CARD_FILE))


def _latest_weights(state: Path, *, size: int) -> Float32:
    """The flat vector (float32 [size]) that latest.json points at, digest checked."""
    path = state / LATEST_FILE
    latest = read_json(path)
    version, name, digest = (latest.get(key) for key in ("version", "weights", "sha256"))
    if version != LATEST_VERSION or isinstance(version, bool):
        raise StateError(f"{path}: version={version!r} is not readable; it must be 1")
    if not isinstance(name, str) or not isinstance(digest, str):
        raise StateError(f"{path}: needs the texts 'weights' and 'sha256'")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise StateError(f"{path}: weights={name!r} must be a file inside the state folder")
    file = state / name
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise StateError(f"{file}: cannot be read: {error.strerror}") from None
    if sha256_hex(raw) != digest:
        raise StateError(f"{file}: its SHA-256 is not the one in {LATEST_FILE}")
    try:
        return vector_from_bytes(raw, size=size)
    except ValueError as error:
        raise StateError(f"{file}: {error}") from None
