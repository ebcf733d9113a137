"""The rooms' one-way imports, looked at from outside: what is really loaded, what is named."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"tensorflow", "tensorflow_federated", "keras", "jax", "tensorflow_privacy"}

# The design's table: what each room may import outside the standard library and itself.
ALLOWED = {
    "tf_dpfl/protocol": {"numpy", "cryptography", "tomli"},
    "tf_dpfl/privacy": {"tf_dpfl.protocol", "dp_accounting", "numpy"},
    "models": {
        "tf_dpfl.protocol.errors", "tf_dpfl.protocol.imports", "tf_dpfl.protocol.interface",
        "tensorflow", "keras", "numpy",
    },
    "tf_dpfl/data": {"tf_dpfl.protocol", "numpy", "tensorflow", "sklearn"},
    "tf_dpfl/client_work": {"tf_dpfl.protocol", "tensorflow", "keras", "numpy"},
    "tf_dpfl/simulation": {
        "tf_dpfl.protocol", "tf_dpfl.privacy", "tf_dpfl.data", "tf_dpfl.client_work", "models",
        "tensorflow", "tensorflow_federated", "tensorflow_privacy", "grpc", "numpy", "matplotlib",
    },
    "tf_dpfl/central": {
        "tf_dpfl.protocol", "tf_dpfl.privacy", "tf_dpfl.client_work", "models", "tensorflow",
        "numpy",
    },
    "tf_dpfl/export": {
        "tf_dpfl.protocol", "tf_dpfl.privacy", "tf_dpfl.client_work", "models", "tensorflow",
        "flatbuffers", "numpy", "cryptography",
    },
    "tf_dpfl/cli": {"tf_dpfl", "models", "rich", "numpy", "cryptography"},
    "mobile_client": {"tf_dpfl.protocol", "numpy", "httpx", "cryptography"},
    "server": {
        "tf_dpfl.protocol", "tf_dpfl.privacy", "numpy", "cryptography", "starlette", "uvicorn",
        "uvloop", "sqlalchemy",
    },
}  # fmt: skip


def modules_loaded_by(code: str) -> set[str]:
    """Top-level names in `sys.modules` after `code` ran in a fresh interpreter."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "module",
    ["tf_dpfl", "tf_dpfl.protocol", "tf_dpfl.privacy.card", "tf_dpfl.privacy.calibration",
     "tf_dpfl.cli.main", "server.cli", "mobile_client.cli"],
)  # fmt: skip
def test_light_module_loads_no_tensorflow(module):
    assert not modules_loaded_by(f"import {module}") & HEAVY


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("tf_dpfl.cli.main", "dpfl"),
        ("server.cli", "dpfl-server"),
        ("mobile_client.cli", "dpfl-device"),
    ],
)
def test_help_answers_without_tensorflow(module, program):
    code = (
        f"import importlib\nmain = importlib.import_module({module!r}).main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    loaded = modules_loaded_by(code)
    assert not loaded & HEAVY
    if program == "dpfl-device":
        assert "dp_accounting" not in loaded


def test_package_alone_loads_not_even_numpy():
    assert "numpy" not in modules_loaded_by("import tf_dpfl")


def test_lazy_names_are_all_there():
    import tf_dpfl

    assert set(tf_dpfl._HOMES) | {"__version__"} == set(tf_dpfl.__all__)
    for name in tf_dpfl.__all__:
        assert getattr(tf_dpfl, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tf_dpfl.no_such_name


def imports_of(file: Path) -> set[str]:
    """Dotted names that `file` imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_its_row_allows(room):
    allowed = ALLOWED[room] | {room.replace("/", ".")} | set(sys.stdlib_module_names)
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    faults = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports_of(file))
        if not any(name == known or name.startswith(known + ".") for known in allowed)
    ]
    assert faults == []


def test_an_import_off_the_table_would_be_seen(tmp_path):
    (tmp_path / "bad.py").write_text("def f():\n    import tensorflow.lite\n")
    assert imports_of(tmp_path / "bad.py") == {"tensorflow.lite"}


def test_no_other_top_level_package():
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name.partition("/")[0] for name in tracked} <= {
        "tf_dpfl", "mobile_client", "server", "models", "tests", "docs", "examples", "benchmarks",
    }  # fmt: skip
