"""Every error is a DpflError, so a command can turn it into one line and exit 2."""

import inspect

import pytest

from tf_dpfl.protocol import errors


def test_every_error_is_a_dpfl_error():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c is not Exception]
    own = [c for c in classes if c.__module__ == errors.__name__]
    assert len(own) == 10
    assert all(issubclass(c, errors.DpflError) for c in own)


@pytest.mark.parametrize("cls", [errors.PlanError, errors.ModelError])
def test_a_list_of_faults_is_one_line_each(cls):
    error = cls(["first", "second"])
    assert error.faults == ("first", "second")
    assert str(error).splitlines() == ["first", "second"]


def test_a_model_error_takes_one_fault_as_a_string():
    assert errors.ModelError("only").faults == ("only",)


def test_a_wire_error_carries_the_status_the_server_answers():
    assert errors.WireError("x").status == 400
    assert errors.WireError("x", status=422).status == 422
