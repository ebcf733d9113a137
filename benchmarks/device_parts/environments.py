"""The environments of the benchmarks' peers, made on first use under build/bench."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

RUNTIMES = ("ai-edge-litert", "tflite-runtime")
TORCH = "torch"


@cache
def environment(name: str, lists: Path = HERE) -> Path:
    """The Python of environment `name`, holding what `name.txt` in `lists` names alone.

    A list is whole, so that packages with requirements that are not needed here
    can be left without them.
    """
    wanted = lists / f"{name}.txt"
    folder = ROOT / "build" / "bench" / name
    stamp = folder / ".stamp"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        print(f"bench: installing {folder.relative_to(ROOT)}, once", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--no-deps"]
        subprocess.run([*pip, "--disable-pip-version-check", "-r", wanted], check=True)
        stamp.write_text(digest)
    return folder / "bin" / "python"


_ONE_THREAD = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)


def variables(*, one_thread: bool = True) -> dict[str, str]:
    """The environment variables of a worker: this checkout; mostly one thread everywhere."""
    threads = dict.fromkeys(_ONE_THREAD, "1") if one_thread else {}
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
