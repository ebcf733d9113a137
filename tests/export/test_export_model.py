"""Trained models leave whole, equal to Keras', with their card and a signed digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import IMAGE, batch, build, layers, plan_of, write_run

from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export.digest import digest_path, verify_model_digest
from tf_dpfl.export.inference import evaluate_tflite, predict_tflite
from tf_dpfl.export.model import FORMATS, export_model
from tf_dpfl.export.operators import operators_of
from tf_dpfl.export.task import keras_bytes
from tf_dpfl.protocol.errors import DataError, ExportError, StateError, TaskError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.manifest import TASK_FILES, FileDigest, Manifest, manifest_to_bytes
from tf_dpfl.protocol.tensors import vector_to_bytes

OUT = {
    "keras": "model.keras",
    "savedmodel": "saved",
    "tflite": "model.tflite",
    "tflite-float16": "half.tflite",
    "tflite-int8": "int8.tflite",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("trained") / "run", build("cnn"), plan_of())


@pytest.fixture(scope="module")
def public_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("public") / "public.npz"
    x = np.random.default_rng(2).normal(size=(100, 28, 28, 1)).astype(np.float32)
    np.savez(path, x=x)
    return path


@pytest.fixture(scope="module")
def exported(
    run: Path, public_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    paths = {}
    for name in FORMATS:
        extra: dict[str, Any] = {}
        if name == "tflite-int8":
            extra = {"representative_data": public_data, "representative_source": "public"}
        out, key = folder / OUT[name], folder / "keys" / "author.pem"
        paths[name] = export_model(run, out, format=name, signing_key=key, **extra)
    return paths


def _logits(path: Path, name: str, x: np.ndarray) -> np.ndarray:
    if name == "savedmodel":
        return np.asarray(tf.keras.models.load_model(path, compile=False)(x))
    if name == "keras":
        return np.asarray(tf.keras.models.load_model(path)(x))
    return predict_tflite(path.read_bytes(), x)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("keras", 0.0),
        ("savedmodel", 1e-6),
        ("tflite", 1e-5),
        ("tflite-float16", 3e-3),
        ("tflite-int8", 0.1),
    ],
)
def test_every_format_predicts_as_the_trained_model(
    exported: dict[str, Path], public_data: Path, name: str, tolerance: float
) -> None:
    x = np.load(public_data)["x"][:40]
    expected = np.asarray(build("cnn")(x))
    error = np.abs(_logits(exported[name], name, x) - expected).max()
    assert error <= tolerance * np.abs(expected).max()


def test_smaller_formats_are_smaller_and_builtin_only(exported: dict[str, Path]) -> None:
    full, half, small = (
        exported[name].stat().st_size for name in ("tflite", "tflite-float16", "tflite-int8")
    )
    assert half < 0.6 * full
    assert small < 0.4 * full
    for name in ("tflite", "tflite-float16", "tflite-int8"):
        assert all(op.is_builtin for op in operators_of(exported[name].read_bytes()))


def test_accuracy_of_the_tflite_file_is_that_of_keras(exported: dict[str, Path]) -> None:
    model = build("cnn")
    x, y = batch(np.random.default_rng(5), model, 501)
    expected = float(np.mean(np.argmax(model(x), axis=1) == y))
    assert evaluate_tflite(exported["tflite"], x, y) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ExportError, match="interpreter"):
        evaluate_tflite(exported["tflite"], x[:, :5], y)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_tflite(exported["tflite"], x[:0], y[:0])


@pytest.mark.parametrize("name", FORMATS)
def test_card_and_digest_stand_beside_every_model(exported: dict[str, Path], name: str) -> None:
    out = exported[name]
    card_path = out.parent / "privacy.json"
    card = json.loads(card_path.read_bytes())
    digest = json.loads(digest_path(out).read_bytes())
    verify_model_digest(out, card_path, public_key=digest["public_key"])
    assert card["central"] == {"epsilon": 1.0}
    for file, entry in digest["files"].items():
        content = (out.parent / file).read_bytes()
        assert entry == {"size": len(content), "sha256": sha256_hex(content)}
        assert card["model_files"][file] == entry["sha256"]


def test_a_changed_model_card_digest_or_key_is_noticed(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    source = exported["tflite"]
    card, out = tmp_path / "privacy.json", tmp_path / source.name
    digest = digest_path(source).read_text()
    key = json.loads(digest)["public_key"]

    def restore() -> None:
        out.write_bytes(source.read_bytes())
        card.write_bytes((source.parent / "privacy.json").read_bytes())
        digest_path(out).write_text(digest)

    restore()
    verify_model_digest(out, card, public_key=key)
    with pytest.raises(TaskError, match="signature"):
        verify_model_digest(out, card, public_key="11" * 32)
    out.write_bytes(source.read_bytes()[:-1] + b"x")
    with pytest.raises(TaskError, match="files"):
        verify_model_digest(out, card, public_key=key)
    restore()
    card.write_text(card.read_text().replace("1.0", "0.1"))
    with pytest.raises(TaskError, match="card"):
        verify_model_digest(out, card, public_key=key)
    restore()
    digest_path(out).write_text(digest.replace('"version": 1', '"version": 2'))
    with pytest.raises(TaskError, match="signature"):
        verify_model_digest(out, card, public_key=key)
    digest_path(out).unlink()
    with pytest.raises(TaskError, match="missing or malformed"):
        verify_model_digest(out, card, public_key=key)


def _write_state(state: Path, *, rounds: int = 2) -> tuple[tf.keras.Model, np.ndarray]:
    """The files of a server's state that the exporter reads, and its newest weights."""
    model = build("linear")
    layout = layout_of(model)
    content = keras_bytes(model)
    (state / "task").mkdir(parents=True)
    (state / "task" / "model.keras").write_bytes(content)
    files = dict.fromkeys(TASK_FILES, FileDigest.of(content))
    files["weights.bin"] = FileDigest(layout.nbytes, "00" * 32)
    manifest = Manifest(
        task_id="t",
        plan=plan_of(),
        layout=layout,
        interface=ExampleInterface(
            (ExampleTensor("x", "float32", (8, 8, 1)),),
            ExampleTensor("y", "int32", ()),
            output_shape=(10,),
        ),
        files=files,
        valid_from_s=1,
        valid_until_s=2,
        central_epsilon=None,
    )
    (state / "task" / "manifest.json").write_bytes(manifest_to_bytes(manifest))
    weights = np.random.default_rng(9).normal(size=layout.size).astype(np.float32)
    raw = vector_to_bytes(weights)
    name = f"checkpoints/round_{rounds:06d}.bin"
    (state / "checkpoints").mkdir()
    (state / name).write_bytes(raw)
    latest = {"version": 1, "released_rounds": rounds, "weights": name, "sha256": sha256_hex(raw)}
    (state / "latest.json").write_text(json.dumps(latest))
    (state / "privacy.json").write_text('{"version": 1, "central": {}, "spending": []}')
    return model, weights


def test_a_servers_state_gives_the_newest_weights(tmp_path: Path) -> None:
    model, weights = _write_state(tmp_path / "state")
    out = tmp_path / "out" / "model.keras"
    export_model(tmp_path / "state", out, format="keras", signing_key=tmp_path / "key.pem")
    loaded = tf.keras.models.load_model(out)
    flat = layout_of(loaded).join([v.numpy() for v in loaded.trainable_variables])
    np.testing.assert_array_equal(flat, weights)
    x, _ = batch(np.random.default_rng(0), model, 5)
    kernel, bias = weights[: 64 * 10].reshape(64, 10), weights[64 * 10 :]
    np.testing.assert_allclose(loaded(x), x.reshape(5, 64) @ kernel + bias, rtol=1e-4, atol=1e-4)


def _break_weights(state: Path) -> None:
    path = state / "checkpoints" / "round_000002.bin"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")


def _set_latest(state: Path, **changes: Any) -> None:
    path = state / "latest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BREAKS = {
    "flipped weights": (_break_weights, "SHA-256"),
    "weights gone": (lambda s: (s / "checkpoints/round_000002.bin").unlink(), "cannot be read"),
    "path outside": (lambda s: _set_latest(s, weights="../../etc/passwd"), "inside the state"),
    "absolute path": (lambda s: _set_latest(s, weights="/etc/passwd"), "inside the state"),
    "other version": (lambda s: _set_latest(s, version=2), "version=2"),
    "no digest": (lambda s: _set_latest(s, sha256=None), "sha256"),
    "not json": (lambda s: (s / "latest.json").write_text("{"), "JSON"),
    "no round yet": (lambda s: (s / "latest.json").unlink(), "latest.json missing"),
    "no central": (lambda s: (s / "privacy.json").write_text("{}"), "version=None must be 1"),
    "half a card": (lambda s: (s / "privacy.json").write_text('{"version": 1}'), "central or"),
    "no card": (lambda s: (s / "privacy.json").unlink(), "privacy.json missing"),
    "other model": (lambda s: (s / "task/model.keras").write_bytes(b"PK"), "manifest says"),
    "broken manifest": (lambda s: (s / "task/manifest.json").write_text("[]"), "manifest"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_state_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    _write_state(tmp_path / "state")
    damage, message = BREAKS[name]
    damage(tmp_path / "state")
    out = tmp_path / "out" / "model.keras"
    with pytest.raises(StateError, match=message):
        export_model(tmp_path / "state", out, format="keras", signing_key=tmp_path / "key.pem")
    assert not out.parent.exists()


def _export(run: Path, tmp_path: Path, **changes: Any) -> Path:
    arguments = {"format": "tflite", "signing_key": tmp_path / "key.pem", **changes}
    return export_model(run, tmp_path / "out" / "model.tflite", **arguments)


def test_int8_needs_data_declared_public_or_released(
    run: Path, public_data: Path, tmp_path: Path
) -> None:
    for source in (None, "client", ""):
        with pytest.raises(ExportError, match=r"'public' or 'released'.*clients"):
            _export(
                run,
                tmp_path,
                format="tflite-int8",
                representative_data=public_data,
                representative_source=source,
            )
    with pytest.raises(ExportError, match=r"needs representative_data.*clients"):
        _export(run, tmp_path, format="tflite-int8", representative_source="public")
    with pytest.raises(ExportError, match="not for tflite"):
        _export(run, tmp_path, representative_data=public_data, representative_source="public")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 28, 28, 1)),
        np.zeros((3, 28, 28)),
        np.full((2, 28, 28, 1), np.nan),
        np.full((2, 28, 28, 1), "a"),
        np.array(None, dtype=object),
        None,
    ],
    ids=["empty", "shape", "nan", "text", "pickle", "no x"],
)
def test_unusable_representative_data_are_refused(run: Path, tmp_path: Path, x: Any) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **({"z": np.zeros(1)} if x is None else {"x": x}))
    with pytest.raises(DataError, match=str(path)):
        _export(
            run,
            tmp_path,
            format="tflite-int8",
            representative_data=path,
            representative_source="released",
        )


def test_bad_targets_and_sources_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    cases: list[tuple[Path, Path, str, type[Exception], str]] = [
        (run, tmp_path / "m.onnx", "onnx", ExportError, "format='onnx' must be one of"),
        (run, tmp_path / "model.h5", "keras", ExportError, r"must end in \.keras"),
        (run, run / "copy.tflite", "tflite", StateError, "must be outside"),
        (tmp_path / "none", tmp_path / "a.tflite", "tflite", StateError, "no such folder"),
        (tmp_path, tmp_path / "o" / "a.tflite", "tflite", StateError, r"model\.keras, privacy"),
    ]
    for source, out, name, error, message in cases:
        with pytest.raises(error, match=message) as raised:
            export_model(source, out, format=name, signing_key=key)
        assert "\n" not in str(raised.value)
        assert not out.exists()
    (tmp_path / "there.tflite").write_text("kept")
    with pytest.raises(StateError, match="exists"):
        export_model(run, tmp_path / "there.tflite", format="tflite", signing_key=key)
    assert (tmp_path / "there.tflite").read_text() == "kept"


def test_a_folder_with_the_card_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "privacy.json").write_text('{"version": 1, "spending": []}')
    with pytest.raises(StateError, match="card of another model"):
        _export(run, tmp_path)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["privacy.json"]


def test_a_broken_keras_file_is_one_clear_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", build("linear"), plan_of())
    (run / "model.keras").write_bytes(b"PK not a model")
    with pytest.raises(StateError, match="cannot be loaded as a Keras model"):
        _export(run, tmp_path)


def test_a_layer_without_builtin_op_is_refused_with_its_name(tmp_path: Path) -> None:
    model = tf.keras.Sequential(
        [
            layers.InputLayer(IMAGE),
            layers.Flatten(),
            layers.Dense(3, "softsign", name="mid"),
            layers.Dense(2),
        ]
    )
    run = write_run(tmp_path / "run", model, plan_of())
    with pytest.raises(ExportError, match=r"layer 'mid' \(Dense\): op Softsign"):
        _export(run, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_predicts_something_else_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(content: bytes, x: Any) -> Any:
        return predict_tflite(content, x) * 1.01

    monkeypatch.setattr("tf_dpfl.export.model.predict_tflite", shifted)
    with pytest.raises(ExportError, match="off by"):
        _export(run, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
