"""Making a task folder: all that a server and its devices need for one training."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models.keeping import load_keras, require_keepable
from models.registry import build_model
from models.shapes import Shape
from models.validate import validate_model
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.losses import require_fitting_loss
from tf_dpfl.export.client import build_client_tflite, dp_method_of
from tf_dpfl.export.folders import (
    CARD_FILE,
    MODEL_FILE,
    PLAN_FILE,
    read_card,
    read_last_clip_norm,
    require_files,
    require_free,
    write_folder,
)
from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.export.refusals import faults_of_layers
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.mechanism import Mechanism, mechanism_from_json, mechanism_of_plan
from tf_dpfl.protocol import manifest as names
from tf_dpfl.protocol import signing
from tf_dpfl.protocol.errors import ExportError, ModelError, StateError, TaskError
from tf_dpfl.protocol.manifest import (
    FileDigest,
    Manifest,
    manifest_to_bytes,
    sign_manifest,
)
from tf_dpfl.protocol.plan import LocalTraining, Plan
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.protocol.tensors import vector_to_bytes

_SECONDS_PER_DAY = 86400
_LONGEST_VALIDITY_DAYS = 3650


@dataclass(frozen=True)
class _Source:
    """What a task is made from; `prior` was released about the same clients before."""

    plan: Plan
    model: tf.keras.Model
    prior: tuple[Mechanism, ...]


def export_client(
    plan_or_run: Plan | Path,
    out: Path,
    *,
    signing_key: Path,
    model: tf.keras.Model | None = None,
    input_shape: Shape | Mapping[str, Shape] | None = None,
    classes: int | None = None,
    positions: Shape = (),
    overrides: Sequence[str] = (),
    valid_for_days: float = 30.0,
) -> Manifest:
    """Writes the task folder `out`: `client.tflite`, weights, signed manifest.

    Nothing is written before the file was run in the interpreter and found to
    compute what TensorFlow computes; then the folder appears whole.

    Args:
      plan_or_run: a plan, for a training that starts on devices; or a run
        folder of `dpfl simulate`, which devices continue: its plan, its model,
        the clip norm where it adapts, and its spending, which counts towards the
        task's epsilon.
      out: a folder that does not exist or is empty.
      signing_key: the Ed25519 private key (PEM); made when there is none.
      model: the model and its initial weights; by default a run's newest model
        or, for a plan, a fresh one of `input_shape` and `classes`.
      input_shape, classes, positions: as for `build_model`; only for a plan without
        `model`.
      overrides: `"section.key=value"` over a run's plan: population, cohort and
        rounds on devices may differ from the simulation's.
      valid_for_days: how long devices accept the task, > 0.

    Returns:
      the manifest as signed.

    Raises:
      ExportError: the model cannot be exported, or arguments that do not fit.
      ModelError: the model cannot be trained privately; names every layer.
      PlanError: an override does not fit; another privacy.unit than the run's
        is one of them.
      StateError: files of the run are missing or broken, or `out` is in use.
    """
    if not 0 < valid_for_days <= _LONGEST_VALIDITY_DAYS:
        raise ExportError(
            f"valid_for_days={valid_for_days!r} must be > 0 and at most {_LONGEST_VALIDITY_DAYS}"
        )
    require_free(out)
    if isinstance(plan_or_run, Plan):
        if overrides:
            raise ExportError("overrides are for a run folder; change the plan itself")
        source = _from_plan(
            plan_or_run, model, input_shape=input_shape, classes=classes, positions=positions
        )
    else:
        source = _from_run(Path(plan_or_run), model, overrides=overrides)
    require_exportable(source.model, source.plan)
    interface = interface_of(source.model, source.plan.local_training)
    plan = calibrate_plan(source.plan)
    claim = _central_epsilon(plan, source.prior)
    method = dp_method_of(source.model, plan)
    content = build_client_tflite(source.model, plan, dp_method=method.name if method else None)
    verify_client_tflite(content, source.model, plan)

    layout = layout_of(source.model)
    weights = layout.join([np.asarray(v) for v in source.model.trainable_variables])
    files = {
        names.CLIENT_FILE: content,
        names.WEIGHTS_FILE: vector_to_bytes(weights),
        names.KERAS_FILE: keras_bytes(source.model),
    }
    now_s = int(time.time())
    manifest = Manifest(
        task_id=signing.random_id(),
        plan=_without_folders(plan),
        layout=layout,
        interface=interface,
        files={name: FileDigest.of(data) for name, data in files.items()},
        valid_from_s=now_s,
        valid_until_s=now_s + math.ceil(valid_for_days * _SECONDS_PER_DAY),
        central_epsilon=claim,
        prior_spending=tuple(mechanism.to_json() for mechanism in source.prior),
        dp_method=method,
    )
    key = signing.load_or_create_key(signing_key)
    raw = manifest_to_bytes(manifest)
    files[names.MANIFEST_FILE] = raw
    files[names.SIGNATURE_FILE] = sign_manifest(key, raw).encode()
    files[names.PUBLIC_KEY_FILE] = signing.public_key_hex(key).encode()
    write_folder(out, files)
    return manifest


def require_exportable(model: tf.keras.Model, plan: Plan) -> None:
    """Raises ModelError with every reason why `model` can not be a task, one line each.

    What a first check finds does not hide what a later one would: layers that can
    not be trained privately, inputs and outputs that do not fit, a model that can
    not be kept in a file, layers that devices can not train.
    """
    checks: tuple[Callable[[], object], ...] = (
        lambda: validate_model(model),
        lambda: _require_interface(model, plan.local_training),
        lambda: require_keepable(model),
    )
    faults: list[str] = []
    for check in checks:
        try:
            check()
        except ModelError as error:
            faults += error.faults
    if not faults:
        return  # the export itself names layers that devices can not train
    known = {_place(fault) for fault in faults}
    faults += [f for f in _faults_on_devices(model) if _place(f) not in known]
    raise ModelError(faults)


def _require_interface(model: tf.keras.Model, local_training: LocalTraining) -> None:
    require_fitting_loss(local_training.loss, interface_of(model, local_training))


def _faults_on_devices(model: tf.keras.Model) -> list[str]:
    try:
        return faults_of_layers(model, op_gradients())
    except Exception:  # the model has faults: it may not even run
        return []


def _place(fault: str) -> str:
    return fault.partition(":")[0].replace("'", "")


def _from_plan(
    plan: Plan,
    model: tf.keras.Model | None,
    *,
    input_shape: Shape | Mapping[str, Shape] | None,
    classes: int | None,
    positions: Shape,
) -> _Source:
    if model is None:
        if input_shape is None or classes is None:
            raise ExportError("a plan without a model needs input_shape and classes")
        model = build_model(
            plan.task.model, input_shape=input_shape, classes=classes, positions=positions
        )
    return _Source(plan, model, ())


def _from_run(run: Path, model: tf.keras.Model | None, *, overrides: Sequence[str]) -> _Source:
    needed = (PLAN_FILE, CARD_FILE) + (() if model is not None else (MODEL_FILE,))
    require_files(run, needed, what="a finished run of dpfl simulate")
    if load_plan(run / PLAN_FILE).privacy.adaptive_clipping:
        overrides = [f"privacy.clip_norm={read_last_clip_norm(run)!r}", *overrides]
    plan = load_plan(run / PLAN_FILE, overrides=overrides)
    card = read_card(run / CARD_FILE)
    try:
        prior = tuple(mechanism_from_json(entry) for entry in card["spending"])
    except TaskError as error:
        raise StateError(f"{run / CARD_FILE}: {error}") from None
    return _Source(plan, model if model is not None else load_keras(run / MODEL_FILE), prior)


def keras_bytes(model: tf.keras.Model) -> bytes:
    """The content of the `.keras` file of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / names.KERAS_FILE
        model.save(path, save_format="keras")
        return path.read_bytes()


def _central_epsilon(plan: Plan, prior: Sequence[Mechanism]) -> float | None:
    """Epsilon once all rounds are done, on top of `prior`; None when infinite."""
    spending = [*prior, mechanism_of_plan(plan, rounds=plan.server.rounds)]
    epsilon = central_epsilon(spending, delta=plan.privacy.delta)
    return epsilon if math.isfinite(epsilon) else None


def _without_folders(plan: Plan) -> Plan:
    """The plan with names of files only: devices need not learn where they were."""
    data: dict[str, Any] = {
        key: Path(value).name
        for key, value in (("path", plan.data.path), ("test_path", plan.data.test_path))
    }
    return replace(plan, data=replace(plan.data, **data))
