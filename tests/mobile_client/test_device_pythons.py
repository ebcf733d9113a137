"""Every Python a device may have makes the same reports, from what pip gives it."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from device_oracle import train_mlp, train_mlp_privately
from device_server import TestServer
from device_task import flags, save_examples, sign_task, write_task

from mobile_client.trainer import Trainer
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.interpreter import CHOICE_VARIABLE
from tf_dpfl.protocol.noise import gaussian_noise, uniforms

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# The environment made from requirements-device.lock alone.
LEAN = ROOT / ".venv-device" / "bin" / "python"
PACKAGED = (
    "tf_dpfl",
    "mobile_client",
    "server",
    "models",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
STEPS = 2 * 3  # epochs times batches of 20 examples
INSTALL_TIMEOUT_S = 900


def interpreter_of(version: str) -> str:
    """A Python of `version`, on the path or beside others of pyenv; skips without one."""
    pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    found = shutil.which(f"python{version}")
    candidates = [found] if found else []
    candidates += sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"))
    for candidate in candidates:
        check = f"import ssl, venv, sys; sys.exit(sys.version_info[:2] != {version_tuple(version)})"
        if subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode:
            continue  # a shim of pyenv for a version that is switched off
        return candidate
    pytest.skip(f"this machine has no Python {version}")


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def clean_environment(home: Path) -> dict[str, str]:
    """Without this checkout on the path: only what was installed can be imported."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", CHOICE_VARIABLE)}
    return {**kept, "NO_PROXY": "127.0.0.1", "HOME": str(home)}


@pytest.fixture(scope="module", params=VERSIONS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a new environment with the project and its extra `device`."""
    base = interpreter_of(request.param)
    folder = tmp_path_factory.mktemp("device")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    subprocess.run([base, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{source}[device]"],
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return str(python)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "mlp-momentum-example", "cnn"])
def test_every_python_makes_the_reports_of_the_reference(
    tmp_path: Path, client_files: Path, installed: str, model: str
) -> None:
    check_reports(tmp_path, client_files, installed, model)


@pytest.mark.slow
def test_every_python_takes_part_in_rounds(
    tmp_path: Path, client_files: Path, installed: str
) -> None:
    check_rounds(tmp_path, client_files, [str(Path(installed).with_name("dpfl-device"))])


@pytest.mark.skipif(not LEAN.exists(), reason="no .venv-device; ./run test makes it")
@pytest.mark.parametrize("model", ["mlp", "mlp-momentum-example", "cnn"])
def test_the_locked_environment_makes_the_reports_of_the_reference(
    tmp_path: Path, client_files: Path, model: str
) -> None:
    check_reports(tmp_path, client_files, str(LEAN), model)


def check_reports(tmp_path: Path, client_files: Path, python: str, model: str) -> None:
    task = sign_task(client_files, model)
    data = save_examples(tmp_path / "own.npz", model.split("-")[0])
    generator = np.random.default_rng(5)
    noise = (0.2 * generator.normal(size=(STEPS, len(task.weights)))).astype(np.float32)
    with np.load(data) as examples:
        x, y = examples["x"], examples["y"]
    # Momentum's steps are noised over the batch size, the oracle's sums are not.
    size = task.manifest.plan.local_training.batch_size if model.endswith("-example") else 1
    np.savez(tmp_path / "inputs.npz", x=x, y=y, noise=noise / np.float32(size))
    done = subprocess.run(
        [
            *(python, str(HERE / "device_round.py")),
            *map(str, (write_task(task, tmp_path / "task"), tmp_path / "inputs.npz")),
            str(tmp_path / "out.npz"),
        ],
        env=clean_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    initial = task.weights.astype(np.float64)
    if model == "mlp":
        trained = train_mlp(task.weights, x, y, task) - initial
        clipped = clip_by_global_norm(trained.astype(np.float32), clip_norm=0.5)
        expected = clipped.astype(np.float64) + noise[0]
    elif model == "cnn":
        expected = cnn_report(task, {"x": x, "y": y}, noise[0])
    else:
        trained = train_mlp_privately(task.weights, x, y, task, noises=iter(noise))
        expected = trained - initial
    key = bytes(range(32))
    with np.load(tmp_path / "out.npz") as found:
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(found["update"], expected, atol=1e-5)
        drawn = gaussian_noise(5000, stddev=2.0, random_bytes=lambda _: key)
        np.testing.assert_allclose(found["noise"], drawn, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found["uniforms"], uniforms(5000, lambda _: key))


def cnn_report(task, examples, noise):
    """By the other interpreter, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHOICE_VARIABLE, "tflite-runtime")
        trainer = Trainer(task.client, task.manifest)
        return trainer.train_round(weights=task.weights, examples=examples, noise=noise)


def check_rounds(tmp_path: Path, client_files: Path, command: list[str]) -> None:
    server = TestServer(sign_task(client_files), rounds=2)
    with server.listening() as url:
        options = flags(
            server=url,
            task_key=server.task.task_key,
            data=save_examples(tmp_path / "own.npz"),
            state=tmp_path / "state",
            token="token-000",
        )
        done = subprocess.run(
            [*command, "run", "--json", *options],
            env=clean_environment(tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert sorted(server.accepted) == [1, 2]
