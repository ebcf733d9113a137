"""Without TensorFlow Federated, simulating says what to install."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_TFF = """
import sys
sys.modules["tensorflow_federated"] = None  # what an absent package looks like
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name == "tensorflow_federated" else real(name, *rest)
)
{then}
"""


def run(then):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TFF.format(then=then)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


def test_importing_the_simulation_names_the_packages_to_install():
    done = run("import tf_dpfl; tf_dpfl.simulate")
    assert done.returncode == 1
    assert "pip install --no-deps tensorflow-federated==0.87.0" in done.stderr


def test_the_command_says_it_in_one_line(tmp_path):
    plan = "examples/digits.toml"
    then = f"from tf_dpfl.cli.main import main; raise SystemExit(main(['simulate', '{plan}', "
    done = run(then + f"'--out', r'{tmp_path / 'run'}']))")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "tensorflow-federated==0.87.0" in done.stderr
    assert not (tmp_path / "run").exists()
