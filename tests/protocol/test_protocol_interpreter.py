"""Which package's interpreter runs: the first one installed, or the one that was named."""

import sys
from types import SimpleNamespace

import pytest

from tf_dpfl.protocol import interpreter
from tf_dpfl.protocol.errors import StateError


@pytest.fixture
def installed(monkeypatch):
    """Says which packages are installed; each one's class is its module's name."""
    monkeypatch.delenv("DPFL_INTERPRETER", raising=False)

    def install(*packages):
        for package, module in interpreter.PACKAGES.items():
            stub = SimpleNamespace(Interpreter=module) if package in packages else None
            monkeypatch.setitem(sys.modules, module, stub)  # None: as if not installed

    return install


def test_litert_is_taken_where_both_are_installed(installed):
    installed("tflite-runtime", "ai-edge-litert")
    assert interpreter.interpreter_class() == "ai_edge_litert.interpreter"


def test_tflite_runtime_is_taken_where_it_is_alone(installed):
    installed("tflite-runtime")
    assert interpreter.interpreter_class() == "tflite_runtime.interpreter"


@pytest.mark.parametrize("package", interpreter.PACKAGES)
def test_the_one_that_is_named_is_taken(installed, monkeypatch, package):
    installed(*interpreter.PACKAGES)
    monkeypatch.setenv("DPFL_INTERPRETER", package)
    assert interpreter.interpreter_class() == interpreter.PACKAGES[package]


def test_a_named_one_that_is_missing_is_not_replaced_by_another(installed, monkeypatch):
    installed("ai-edge-litert")
    monkeypatch.setenv("DPFL_INTERPRETER", "tflite-runtime")
    with pytest.raises(StateError, match="pip install tflite-runtime"):
        interpreter.interpreter_class()


@pytest.mark.parametrize("name", ["", "tensorflow", "ai_edge_litert"])
def test_an_unknown_name_is_refused_with_those_there_are(installed, monkeypatch, name):
    installed(*interpreter.PACKAGES)
    monkeypatch.setenv("DPFL_INTERPRETER", name)
    with pytest.raises(StateError, match="must be one of ai-edge-litert, tflite-runtime"):
        interpreter.interpreter_class()


def test_without_any_the_error_names_what_to_install(installed, monkeypatch):
    installed()
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with pytest.raises(StateError, match="pip install ai-edge-litert"):
        interpreter.interpreter_class()
