"""Fetching one file tree out of a Debian package, as an ordinary user.

`apt-get download` and `dpkg-deb -x` need no root: nothing is installed. Where
the machine's package lists are missing or out of date, lists of our own are
fetched into a private folder and thrown away after.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tf_dpfl.protocol.errors import DataError

# A 31 MB package over a slow line; a dead mirror must not hang for longer.
_TIMEOUT_S = 300

_PRIVATE_FOLDERS = ("state/lists/partial", "cache/archives/partial")


def unpack_package(package: str, *, into: Path) -> None:
    """Downloads the Debian package `package` and unpacks its files below `into`.

    Raises DataError, naming what failed, when there is no apt, no network or no
    such package. Signatures are checked by apt with the machine's own keys.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(f"this machine has no {tool}")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".apt-") as name:
        folder = Path(name)
        archive = _download(package, folder)
        _run(["dpkg-deb", "-x", str(archive), str(into)], cwd=folder)


def _download(package: str, folder: Path) -> Path:
    """The package's archive in `folder`, by the machine's lists or by fresh ones."""
    try:
        _run(["apt-get", *_options(), "download", package], cwd=folder)
    except DataError:
        private = _options(private=folder)
        for part in _PRIVATE_FOLDERS:
            (folder / part).mkdir(parents=True)
        try:
            _run(["apt-get", *private, "update"], cwd=folder)
        except DataError as error:
            # One broken foreign source fails the whole update: the package's own
            # may still have arrived.
            update_failure = f" (update: {error})"
        else:
            update_failure = ""
        try:
            _run(["apt-get", *private, "download", package], cwd=folder)
        except DataError as error:
            raise DataError(f"{error}{update_failure}") from None
    archives = sorted(folder.glob("*.deb"))
    if not archives:
        raise DataError(f"apt-get download {package} left no package")
    return archives[0]


def _options(*, private: Path | None = None) -> list[str]:
    options = ["-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
    if os.geteuid() == 0:
        # Root's downloads drop to the user _apt, which can not write here.
        options += ["-o", "APT::Sandbox::User=root"]
    if private is not None:
        options += [
            *("-o", f"Dir::State={private / 'state'}"),
            *("-o", f"Dir::State::Lists={private / 'state/lists'}"),
            *("-o", f"Dir::Cache={private / 'cache'}"),
            *("-o", f"Dir::Cache::Archives={private / 'cache/archives'}"),
            *("-o", "Acquire::Languages=none"),
            # An unreachable mirror would else be a warning and "no such package".
            *("-o", "APT::Update::Error-Mode=any"),
        ]
    return options


def _run(command: Sequence[str], *, cwd: Path) -> None:
    """Runs quietly; DataError with the last complaint when it fails."""
    name = " ".join(part for part in command if not part.startswith(("-", "/")) and "=" not in part)
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{name}: no answer in {_TIMEOUT_S} s") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("E:")] or lines or ["no message"]
        raise DataError(f"{name}: {errors[-1][:200]}")
