"""Fixtures of the device's tests: real client files, one device in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from device_bench import Bench
from device_server import TestServer
from device_task import SignedTask, sign_task

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def client_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported once, by the real exporter, in a process that may hold TensorFlow."""
    out = tmp_path_factory.mktemp("client_files")
    with open(out / "log.txt", "wb") as log:
        built = subprocess.run(
            [sys.executable, str(HERE / "device_build_client.py"), str(out)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
            stdout=log,
            stderr=log,
            timeout=240,
            check=False,
        )
    assert built.returncode == 0, (out / "log.txt").read_text()[-2000:]
    return out


@pytest.fixture
def task(client_files: Path) -> SignedTask:
    return sign_task(client_files)


@pytest.fixture
def bench(tmp_path: Path, task: SignedTask) -> Bench:
    return Bench(tmp_path, TestServer(task))
