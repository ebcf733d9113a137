"""Writing a trained model for use, with its privacy card and a signed digest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models.keeping import load_keras
from tf_dpfl.client_work.interface import inputs_of
from tf_dpfl.export.client import infer_signature
from tf_dpfl.export.convert import convert
from tf_dpfl.export.digest import (
    CARD_FILES_KEY,
    card_digest,
    digest_path,
    model_digests,
    sign_digest,
)
from tf_dpfl.export.folders import CARD_FILE, read_json
from tf_dpfl.export.inference import predict_tflite
from tf_dpfl.export.operators import refuse_custom_ops
from tf_dpfl.export.quiet import quiet
from tf_dpfl.export.representative import load_representative
from tf_dpfl.export.trained import load_trained
from tf_dpfl.protocol import signatures, signing
from tf_dpfl.protocol.errors import ExportError, StateError
from tf_dpfl.protocol.files import sync_folder, write_atomically
from tf_dpfl.protocol.tensors import Float32

KERAS, SAVEDMODEL = "keras", "savedmodel"
TFLITE, TFLITE_FLOAT16, TFLITE_INT8 = "tflite", "tflite-float16", "tflite-int8"
FORMATS = (KERAS, SAVEDMODEL, TFLITE, TFLITE_FLOAT16, TFLITE_INT8)

# Largest error of a logit, as a part of the largest logit. Float32 differs by
# the order of sums; float16 weights carry 2^-11; int8 activations 2^-8 a layer.
_TOLERANCE = {KERAS: 1e-5, SAVEDMODEL: 1e-5, TFLITE: 1e-4, TFLITE_FLOAT16: 1e-2, TFLITE_INT8: 0.2}

_EXAMPLES_COMPARED = 64


def export_model(
    run_or_state: Path,
    out: Path,
    *,
    format: str,
    signing_key: Path,
    representative_data: Path | None = None,
    representative_source: str | None = None,
) -> Path:
    """Writes the newest released model to `out`, `privacy.json` and a signed digest beside it.

    The file is run and compared with Keras before it is written.

    Args:
      run_or_state: a RUN folder of `dpfl simulate` or a STATE folder of
        `dpfl-server`.
      out: the file, or the folder of a SavedModel; must not exist.
      format: one of `FORMATS`. TFLite files have the signature `infer` of
        `protocol.signatures` and take float32, int8 too.
      signing_key: Ed25519 private key (PEM); made when there is none.
      representative_data: only for tflite-int8: an `.npz` with the examples x.
      representative_source: only for tflite-int8: "public" or "released".

    Returns:
      `out`. Beside it: `privacy.json`, the card with the digest of each model
      in that folder, and `OUT.digest.json` (`digest.verify_model_digest`).

    Raises:
      ExportError: an unknown format, an op without TFLite builtin, predictions
        that differ from Keras', int8 without declared data.
      StateError: files are missing, broken or in the way.
      DataError: representative data that cannot be used.
    """
    if format not in FORMATS:
        raise ExportError(f"format={format!r} must be one of {', '.join(FORMATS)}")
    if format != TFLITE_INT8 and (representative_data, representative_source) != (None, None):
        raise ExportError(f"representative data are for {TFLITE_INT8}, not for {format}")
    if out.exists() or out.is_symlink():
        raise StateError(f"{out}: exists; name a new file")
    if out.parent.resolve() == run_or_state.resolve():
        raise StateError(f"{out}: must be outside {run_or_state}, whose own privacy.json stays")
    if format == KERAS and out.suffix != ".keras":
        raise ExportError(f"{out}: must end in .keras, or Keras will not load it")
    trained = load_trained(run_or_state)
    model = trained.model
    inputs_of(model)
    representative = None
    if format == TFLITE_INT8:
        representative = load_representative(
            representative_data, source=representative_source, model=model
        )
    card_path = out.parent / CARD_FILE
    card = _card_beside(card_path, trained.card)
    key = signing.load_or_create_key(signing_key)

    with _appearing_whole(out) as temporary:
        if format in (KERAS, SAVEDMODEL):
            _write_keras(model, temporary, format)
        else:
            _write_tflite(model, temporary, format, representative=representative)
    files = model_digests(out)
    card[CARD_FILES_KEY].update({name: digest.sha256 for name, digest in files.items()})
    write_atomically(card_path, json.dumps(card, indent=2).encode() + b"\n")
    write_atomically(digest_path(out), sign_digest(key, files, card))
    return out


@contextlib.contextmanager
def _appearing_whole(out: Path) -> Iterator[Path]:
    """A path to write a file or folder to, which becomes `out` unless that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{out}: cannot be made: {error}") from None
    # With the suffix of `out`: Keras tells formats by it.
    temporary = out.with_name(f".{os.urandom(6).hex()}.tmp{out.suffix}")
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # of what a failure left behind
        if temporary.exists():
            temporary.unlink()
    sync_folder(out.parent)


def _card_beside(path: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card to write to `path`: with the models it already names, if it is the same."""
    models: dict[str, Any] = {}
    if path.exists():
        present = read_json(path)
        if card_digest(present) != card_digest(card):
            raise StateError(f"{path}: is the card of another model; write to another folder")
        models = dict(present.get(CARD_FILES_KEY, {}))
    return {**card, CARD_FILES_KEY: models}


def _write_keras(model: tf.keras.Model, path: Path, format: str) -> None:
    x = _random_examples(model)
    with quiet():
        if format == KERAS:
            model.save(path, save_format="keras")
            logits = np.asarray(load_keras(path)(x, training=False))
        else:
            model.save(path, save_format="tf")
            serve = tf.saved_model.load(str(path)).signatures["serving_default"]
            (logits,) = (np.asarray(v) for v in serve(tf.constant(x)).values())
    _require_same(logits, model, x, format)


def _write_tflite(
    model: tf.keras.Model, path: Path, format: str, *, representative: Float32 | None
) -> None:
    module = tf.Module()
    module.model = model
    infer = infer_signature(lambda batch: model(batch["x"], training=False), inputs_of(model))

    def configure(converter: Any) -> None:
        if format == TFLITE_FLOAT16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        elif representative is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: (
                {"x": representative[i : i + 1]} for i in range(len(representative))
            )

    content = convert(
        module,
        {signatures.INFER: infer},
        model=model,
        variables_change=False,
        configure=configure,
    )
    refuse_custom_ops(content, model=model)
    # Outside of the calibrated ranges int8 saturates: compare inside of them.
    x = _random_examples(model) if representative is None else representative
    _require_same(predict_tflite(content, x), model, x, format)
    write_atomically(path, content)


def _random_examples(model: tf.keras.Model) -> Float32:
    rng = np.random.default_rng(0)
    return rng.normal(size=(_EXAMPLES_COMPARED, *model.input_shape[1:])).astype(np.float32)


def _require_same(logits: Float32, model: tf.keras.Model, x: Float32, format: str) -> None:
    """Raises ExportError unless `logits` are the model's, within the format's precision."""
    expected = np.concatenate(
        [np.asarray(model(x[i : i + 64], training=False)) for i in range(0, len(x), 64)]
    )
    allowed = _TOLERANCE[format] * float(np.max(np.abs(expected)))
    error = float(np.max(np.abs(logits - expected)))
    if not error <= allowed:
        raise ExportError(
            f"the {format} file's logits are off by {error:.3g} from Keras'; allowed is "
            f"{allowed:.3g}"
        )
