"""A task folder is verified, signed, whole, and carries what was spent before."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import IMAGE, PRIOR, activation, build, layers, plan_of, write_run

from tf_dpfl.cli.main import main
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export import task
from tf_dpfl.export.task import export_client
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs, mechanism_of_plan
from tf_dpfl.protocol.errors import DpflError, ExportError, ModelError, PlanError, StateError
from tf_dpfl.protocol.interface import ExampleTensor
from tf_dpfl.protocol.manifest import (
    CLIENT_FILE,
    KERAS_FILE,
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    TASK_FILES,
    WEIGHTS_FILE,
    verify_manifest,
)
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.protocol.signing import load_or_create_key, public_key_hex
from tf_dpfl.protocol.tensors import vector_from_bytes


def _flat(model: tf.keras.Model) -> np.ndarray:
    return layout_of(model).join([v.numpy() for v in model.trainable_variables])


def test_a_task_from_a_plan_is_whole_signed_and_of_the_given_weights(tmp_path: Path) -> None:
    model, plan, key = build("linear"), plan_of(), tmp_path / "author.pem"
    out = tmp_path / "nested" / "task"
    manifest = export_client(plan, out, signing_key=key, model=model, valid_for_days=2)

    files = {*TASK_FILES, MANIFEST_FILE, SIGNATURE_FILE, PUBLIC_KEY_FILE}
    assert {path.name for path in out.iterdir()} == files
    public = (out / PUBLIC_KEY_FILE).read_text()
    assert public == public_key_hex(load_or_create_key(key))
    raw, signature = (out / MANIFEST_FILE).read_bytes(), (out / SIGNATURE_FILE).read_text()
    assert verify_manifest(raw, signature, public_key=public) == manifest
    for name, digest in manifest.files.items():
        digest.check(name, (out / name).read_bytes())
    assert manifest.plan == plan
    assert manifest.interface.inputs == (ExampleTensor("x", "float32", (8, 8, 1)),)
    assert manifest.interface.classes == 10
    assert manifest.valid_until_s - manifest.valid_from_s == 2 * 86400
    assert manifest.prior_spending == ()
    weights = vector_from_bytes((out / WEIGHTS_FILE).read_bytes(), size=manifest.layout.size)
    np.testing.assert_array_equal(weights, _flat(model))
    loaded = tf.keras.models.load_model(out / KERAS_FILE)
    np.testing.assert_array_equal(_flat(loaded), weights)
    expected = central_epsilon([mechanism_of_plan(plan, rounds=3)], delta=1e-3)
    assert manifest.central_epsilon == pytest.approx(expected)


def test_a_fresh_model_is_built_from_the_plan(tmp_path: Path) -> None:
    manifest = export_client(
        plan_of(), tmp_path / "task", signing_key=tmp_path / "k.pem", input_shape=(4,), classes=3
    )
    assert manifest.interface.inputs == (ExampleTensor("x", "float32", (4,)),)
    assert manifest.interface.classes == 3
    assert manifest.layout.shapes[-1] == (3,)


def test_a_run_gives_plan_weights_and_spending(tmp_path: Path) -> None:
    model = build("linear")
    run = write_run(tmp_path / "run", model, plan_of())
    manifest = export_client(
        run,
        tmp_path / "task",
        signing_key=tmp_path / "k.pem",
        overrides=["clients.population=20", "server.rounds=4"],
    )
    assert (manifest.plan.clients.population, manifest.plan.server.rounds) == (20, 4)
    assert manifest.prior_spending == (PRIOR.to_json(),)
    weights = (tmp_path / "task" / WEIGHTS_FILE).read_bytes()
    np.testing.assert_array_equal(
        vector_from_bytes(weights, size=manifest.layout.size), _flat(model)
    )
    on_devices = mechanism_of_plan(manifest.plan, rounds=4)
    together = central_epsilon([PRIOR, on_devices], delta=1e-3)
    assert manifest.central_epsilon == pytest.approx(together)
    assert manifest.central_epsilon > central_epsilon([on_devices], delta=1e-3)


def example_level(**local_training: Any) -> Any:
    return plan_of(unit="example", delta=1e-4, local_training=local_training)


def binned() -> tf.keras.Model:
    """Numbers put into bins, by an op that no per-example rule is known for."""
    bins = [layers.Discretization([0.0, 1.0]), layers.Embedding(3, 2)]
    return tf.keras.Sequential([layers.InputLayer((5,)), *bins, layers.Flatten(), layers.Dense(3)])


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda: build("linear"), "one_pass"), (binned, "loop")],
    ids=["one_pass", "loop"],
)
def test_an_example_level_task_says_how_it_clips_and_claims_what_an_example_gets(
    tmp_path: Path, make: Any, expected: str
) -> None:
    plan = example_level(epochs=2)
    manifest = export_client(plan, tmp_path / "task", signing_key=tmp_path / "k.pem", model=make())
    assert manifest.dp_method is not None and manifest.dp_method.name == expected
    assert ("Bucketize" in manifest.dp_method.reason) == (expected == "loop")
    raw = (tmp_path / "task" / MANIFEST_FILE).read_bytes()
    assert json.loads(raw)["dp_method"]["name"] == expected
    spent = ExampleGaussianEpochs(1.5, "poisson", 0.2, 3, 2)
    assert manifest.central_epsilon == central_epsilon([spent], delta=1e-4)


def test_a_run_does_not_go_on_with_another_unit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", build("linear"), plan_of())
    with pytest.raises(PlanError, match="units example and user.*keep privacy.unit"):
        export_client(
            run,
            tmp_path / "task",
            signing_key=tmp_path / "k.pem",
            overrides=["privacy.unit=example", "privacy.delta=1e-4"],
        )
    assert not (tmp_path / "task").exists()


def test_a_target_epsilon_is_calibrated(tmp_path: Path) -> None:
    plan = plan_of(target_epsilon=4.0)
    manifest = export_client(
        plan, tmp_path / "task", signing_key=tmp_path / "k.pem", model=build("linear")
    )
    assert manifest.plan.privacy.calibrated_noise_multiplier > 0
    assert manifest.central_epsilon == pytest.approx(4.0, rel=0.05)
    assert manifest.central_epsilon <= 4.0


def test_without_noise_the_epsilon_is_null(tmp_path: Path) -> None:
    manifest = export_client(
        plan_of(noise_multiplier=0.0),
        tmp_path / "task",
        signing_key=tmp_path / "k.pem",
        model=build("linear"),
    )
    assert manifest.central_epsilon is None
    assert b'"central_epsilon":null' in (tmp_path / "task" / MANIFEST_FILE).read_bytes()


def test_folders_of_the_author_are_not_told_to_devices(tmp_path: Path) -> None:
    tree = plan_to_dict(plan_of())
    tree["data"] = {
        "source": "folder",
        "path": "/home/author/secret/clients",
        "test_path": "/home/author/secret/test.npz",
        "partition": "natural",
    }
    export_client(
        plan_from_dict(tree),
        tmp_path / "task",
        signing_key=tmp_path / "k.pem",
        model=build("linear"),
    )
    raw = (tmp_path / "task" / MANIFEST_FILE).read_bytes()
    assert b"secret" not in raw
    assert b'"path":"clients"' in raw


def _with_batch_norm() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.InputLayer(IMAGE),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(name="bn"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def _with_conv3d() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.InputLayer((4, 4, 4, 2)),
            layers.Conv3D(3, 2, name="volume"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"valid_for_days": 0.0}, ExportError, "valid_for_days=0.0"),
        ({"valid_for_days": float("nan")}, ExportError, "valid_for_days=nan"),
        ({"valid_for_days": float("inf")}, ExportError, "valid_for_days=inf"),
        ({"model": None}, ExportError, "input_shape and classes"),
        ({"overrides": ["server.rounds=2"]}, ExportError, "run folder"),
        ({"model": _with_batch_norm}, ModelError, "bn"),
        ({"model": _with_conv3d}, ExportError, r"layer 'volume' \(Conv3D\): op Conv3D"),
    ],
    ids=["zero days", "nan days", "infinite days", "no sizes", "overrides", "batch norm", "conv3d"],
)
def test_what_cannot_be_exported_leaves_no_folder(
    arguments: dict[str, Any], error: type[DpflError], message: str, tmp_path: Path
) -> None:
    model = arguments.pop("model", lambda: build("linear"))
    with pytest.raises(error, match=message):
        export_client(
            plan_of(),
            tmp_path / "out" / "task",
            signing_key=tmp_path / "k.pem",
            model=model() if model else None,
            **arguments,
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "k.pem").exists()


def test_a_file_that_fails_verification_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = task.build_client_tflite(activation("tanh"), plan_of())
    monkeypatch.setattr(task, "build_client_tflite", lambda model, plan, **_: another)
    with pytest.raises(ExportError, match="not what TensorFlow computes"):
        export_client(
            plan_of(),
            tmp_path / "out" / "task",
            signing_key=tmp_path / "k.pem",
            model=activation("relu"),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["full folder", "file", "dangling link"])
def test_an_existing_target_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "task"
    if kind == "full folder":
        out.mkdir()
        (out / "mine.txt").write_text("kept")
    elif kind == "file":
        out.write_text("kept")
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StateError, match="exists"):
        export_client(plan_of(), out, signing_key=tmp_path / "k.pem", model=build("linear"))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_target_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "task"
    out.mkdir()
    export_client(plan_of(), out, signing_key=tmp_path / "k.pem", model=build("linear"))
    assert (out / CLIENT_FILE).stat().st_size > 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_crash_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_or_create_key(tmp_path / "k.pem")

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tf_dpfl.export.folders.os.replace", full_disk)
    with pytest.raises(StateError, match="No space left"):
        export_client(
            plan_of(), tmp_path / "task", signing_key=tmp_path / "k.pem", model=build("linear")
        )
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.parametrize("missing", ["plan.toml", "model.keras", "privacy.json"])
def test_a_missing_run_file_is_one_clear_error(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run", build("linear"), plan_of())
    (run / missing).unlink()
    with pytest.raises(StateError, match=f"{missing} missing"):
        export_client(run, tmp_path / "task", signing_key=tmp_path / "k.pem")


def test_broken_run_files_are_clear_errors(tmp_path: Path) -> None:
    key, out = tmp_path / "k.pem", tmp_path / "task"
    with pytest.raises(StateError, match="no such folder"):
        export_client(tmp_path / "none", out, signing_key=key)
    run = write_run(tmp_path / "run", build("linear"), plan_of())
    for content in ("{", "[]", "{}", json.dumps({"spending": [{"kind": "laplace"}]})):
        (run / "privacy.json").write_text(content)
        with pytest.raises(StateError, match=r"privacy\.json"):
            export_client(run, out, signing_key=key)
    (run / "plan.toml").write_text("version = 1\n")
    with pytest.raises(PlanError, match=r"plan\.toml"):
        export_client(run, out, signing_key=key)
    assert not out.exists()


@pytest.mark.parametrize(
    ("clipping", "name"),
    [
        ("global", None),
        ("per_layer", "clip_norm_of_each_variable"),
        ("value", "bound_of_each_entry"),
    ],
)
def test_the_command_prints_the_bound_of_what_is_clipped_by_itself(
    clipping: str, name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_of(clipping=clipping)))
    key, out = str(tmp_path / "key.pem"), tmp_path / "task"
    arguments = ["--out", str(out), "--signing-key", key, "--json"]
    assert main(["export", "client", str(tmp_path / "plan.toml"), *arguments]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    layout = json.loads((out / "manifest.json").read_text())["layout"]
    weights = sum(math.prod(entry["shape"]) for entry in layout)
    parts = {"per_layer": len(layout), "value": weights}.get(clipping)
    found = {key: event[key] for key in event if key.endswith(("_variable", "_entry"))}
    assert found == ({name: pytest.approx(0.5 / math.sqrt(parts))} if name and parts else {})


USER_MODELS = """
import tensorflow as tf

L = tf.keras.layers

def of_two_inputs():
    city = tf.keras.Input((1,), name="city", dtype="int32")
    age = tf.keras.Input((3,), name="age")
    words = L.Flatten()(L.Embedding(4, 2)(city))
    return tf.keras.Model([city, age], L.Dense(2)(L.Concatenate()([words, age])))

def at_every_step(classes):
    steps = L.Embedding(4, 3)
    return tf.keras.Sequential([L.InputLayer((6,), dtype="int32"), steps, L.Dense(classes)])
"""


@pytest.mark.parametrize(
    ("function", "arrays", "loss", "target", "output"),
    [
        (
            "of_two_inputs",
            {"x_city": (1,), "x_age": (3,)},
            "sparse_categorical_crossentropy",
            (),
            2,
        ),
        ("at_every_step", {"x": (6,)}, "sparse_categorical_crossentropy", (6,), 2),
        ("at_every_step", {"x": (6,)}, "mean_squared_error", (6, 3), 3),
    ],
)
def test_the_command_exports_what_own_data_and_a_function_of_ones_own_say(
    function: str,
    arrays: dict[str, tuple[int, ...]],
    loss: str,
    target: tuple[int, ...],
    output: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "dpfl_models_of_a_user.py").write_text(USER_MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    (tmp_path / "clients").mkdir()
    for client in range(2):
        examples = {name: rng.integers(0, 4, (3, *shape)) for name, shape in arrays.items()}
        y = np.arange(3 * math.prod(target)).reshape(3, *target) % 2
        np.savez(tmp_path / "clients" / f"{client}.npz", y=y, **examples)
    tree = plan_to_dict(plan_of(local_training={"loss": loss}))
    tree["task"] = {"model": f"dpfl_models_of_a_user:{function}"}
    tree["data"] = {"source": "folder", "path": str(tmp_path / "clients"), "partition": "natural"}
    tree["clients"].update(population=2, clients_per_round=1)
    tree["privacy"].update(smallest_cohort=1)
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_from_dict(tree)))
    key, out = str(tmp_path / "key.pem"), tmp_path / "task"
    plan = str(tmp_path / "plan.toml")
    assert main(["export", "client", plan, "--out", str(out), "--signing-key", key]) == 0
    interface = json.loads((out / "manifest.json").read_text())["interface"]
    assert {entry["name"]: tuple(entry["shape"]) for entry in interface["inputs"]} == arrays
    assert tuple(interface["target"]["shape"]) == target
    assert interface["output_shape"][-1] == output
