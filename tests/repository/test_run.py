"""`./run`: environments made once, made anew when broken, and clear refusals."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-device.lock")

# Stands in for Python: logs its calls, makes "environments" that are copies of
# itself, and fails to install while the file `broken` exists.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
    *"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *"-r requirements"*) [ ! -e "{broken}" ] ;;
esac
"""


class Clone:
    """A folder with `run`, its locks, and a Python that only logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.broken = folder / "broken"
        for name in ("run", "pyproject.toml", *LOCKS):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "fake_python"
        self.python.write_text(FAKE_PYTHON.format(log=self.log, broken=self.broken))
        self.python.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`./run ARGUMENTS` with the fake Python."""
        return subprocess.run(
            [self.folder / "run", *arguments],
            env={**os.environ, "PYTHON": str(self.python), **environment},
            cwd="/",
            capture_output=True,
            text=True,
        )

    def calls(self, fragment: str) -> int:
        """How often Python was called with `fragment` among its arguments."""
        return self.log.read_text().count(fragment) if self.log.exists() else 0


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_environments_are_made_once(clone):
    first = clone.run("test", "-k", "x")
    assert first.returncode == 0, first.stderr
    assert "installing .venv from requirements.lock" in first.stderr
    assert "installing .venv-device from requirements-device.lock" in first.stderr
    second = clone.run("test")
    assert second.returncode == 0
    assert second.stderr == ""
    assert clone.calls("-m venv") == 2
    assert clone.calls("--editable") == 2
    assert clone.calls("-m pytest -n 2 --dist loadfile -m not slow -k x") == 1


def test_interrupted_installation_is_made_anew(clone):
    clone.broken.touch()
    failed = clone.run("test")
    assert failed.returncode == 2
    assert "could not be installed" in failed.stderr
    assert clone.calls("-m pytest") == 0
    clone.broken.unlink()
    assert clone.run("test").returncode == 0
    assert clone.calls("-m pytest") == 1


def test_changed_lock_is_installed_again(clone):
    clone.run("check")
    before = clone.calls("-m venv")
    with (clone.folder / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    clone.run("check")
    assert clone.calls("-m venv") == before + 1


def test_moved_folder_is_linked_in_again(clone, tmp_path):
    clone.run("test")
    linked = clone.calls("--editable")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    tmp_path.mkdir()  # the log's folder
    subprocess.run(
        [moved / "run", "test"],
        env={**os.environ, "PYTHON": str(moved / "fake_python")},
        check=True,
        capture_output=True,
    )
    assert clone.calls("--editable") == linked == 2


def test_missing_python_is_said_clearly(clone, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("sh", "dirname", "sha256sum", "cut", "cat"):
        (empty / tool).symlink_to(shutil.which(tool))
    for name in ("python3.11", "python3"):
        (empty / name).write_text("#!/bin/sh\nexit 1\n")
        (empty / name).chmod(0o755)
    refused = clone.run("test", PATH=str(empty), PYTHON="")
    assert refused.returncode == 2
    assert "no Python 3.11 found" in refused.stderr
    assert not (clone.folder / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "usage:"), (["nonsense"], "unknown job 'nonsense'"), (["bench"], "no benchmark ''"),
     (["bench", "../run"], "no benchmark"), (["bench", "nosuch"], "no benchmark 'nosuch'")],
)  # fmt: skip
def test_bad_job_is_refused_before_anything_is_installed(clone, arguments, said):
    (clone.folder / "benchmarks").mkdir()
    refused = clone.run(*arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert clone.calls("-m venv") == 0


def test_help_names_every_job(clone):
    shown = clone.run("help")
    assert shown.returncode == 0
    script = (ROOT / "run").read_text()
    jobs = re.findall(r"^    ([a-z][a-z |-]*)\)(?: \w+ ;;)?$", script, flags=re.MULTILINE)
    names = {
        name for job in jobs for name in job.split(" | ") if not name.startswith(("-", "help"))
    }
    assert {"demo", "test", "check", "lock", "dpfl-device"} <= names
    assert all(re.search(rf"^  {name}\b", shown.stdout, re.MULTILINE) for name in names)


@pytest.mark.parametrize("name", LOCKS)
def test_locks_name_no_host_and_every_package_is_hashed(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"://|index-url|find-links|trusted-host", text)
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if "==" in entry]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


def test_device_lock_holds_no_tensorflow():
    packages = re.findall(r"^([\w-]+)==", (ROOT / LOCKS[1]).read_text(), flags=re.MULTILINE)
    assert {"numpy", "cryptography", "httpx", "ai-edge-litert"} <= set(packages)
    assert not {"tensorflow", "keras", "dp-accounting", "scipy"} & set(packages)
