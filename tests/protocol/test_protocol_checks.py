"""Single values: NaN, infinity, booleans and numbers without a float fail every check."""

import math
from dataclasses import fields, make_dataclass

import pytest

from tf_dpfl.protocol import checks

NAN, INF = math.nan, math.inf


def rule_of(field):
    (f,) = fields(make_dataclass("Holder", [("value", object, field)]))
    return f.metadata["rule"]


@pytest.mark.parametrize("value", [1, 5, 2**53])
def test_integers_in_range_are_accepted(value):
    assert rule_of(checks.integer(at_least=1)).accepts(value)


@pytest.mark.parametrize(
    "value", [0, -1, True, False, 1.0, NAN, INF, "1", None, [1], 2**53 + 1, 10**400, -(10**400)]
)
def test_anything_else_is_not_an_integer_in_range(value):
    assert not rule_of(checks.integer(at_least=1)).accepts(value)


@pytest.mark.parametrize("value", [1e-300, 0.5, 1, 9.999])
def test_numbers_in_range_are_accepted_and_become_floats(value):
    rule = rule_of(checks.number(above=0, below=10))
    assert rule.accepts(value)
    assert type(rule.convert(value)) is float


@pytest.mark.parametrize(
    "value", [0, 0.0, -0.0, -1, 10, NAN, INF, -INF, True, "1", None, [], 10**400, -(10**400)]
)
def test_anything_else_is_not_a_number_in_range(value):
    assert not rule_of(checks.number(above=0, below=10)).accepts(value)


def test_at_least_includes_its_bound():
    rule = rule_of(checks.number(at_least=0))
    assert rule.accepts(0) and rule.accepts(0.0)
    assert not rule.accepts(-1e-300) and not rule.accepts(NAN)


def test_a_number_without_bounds_is_still_finite():
    rule = rule_of(checks.number())
    assert rule.accepts(-5)
    assert not rule.accepts(INF) and not rule.accepts(NAN)


def test_only_an_optional_number_may_be_none():
    assert rule_of(checks.number(above=0, optional=True)).accepts(None)
    assert rule_of(checks.number(above=0, optional=True)).convert(None) is None
    assert not rule_of(checks.number(above=0)).accepts(None)


@pytest.mark.parametrize("value", ["c", "", 1, None, ["a"], True])
def test_a_choice_is_one_of_its_words(value):
    rule = rule_of(checks.choice("a", "b"))
    assert rule.accepts("a") and rule.accepts("b")
    assert not rule.accepts(value)


@pytest.mark.parametrize("value", ["", 1, None, b"a", "\ud800"])
def test_required_text_is_a_non_empty_string_that_utf8_can_carry(value):
    rule = rule_of(checks.text())
    assert rule.accepts("model") and rule.accepts("日本 😀")
    assert not rule.accepts(value)


def test_only_text_with_an_empty_default_may_be_empty():
    assert rule_of(checks.text(default="")).accepts("")


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0])
def test_a_flag_is_true_or_false(value):
    rule = rule_of(checks.flag())
    assert rule.accepts(True) and rule.accepts(False)
    assert not rule.accepts(value)


@pytest.mark.parametrize("value", [[0], [1, True], [1.0], "11", 1, None, [NAN], [10**400]])
def test_a_list_of_integers_holds_nothing_else(value):
    rule = rule_of(checks.integers(at_least=1))
    assert rule.accepts([]) and rule.accepts([1, 2]) and rule.accepts((3,))
    assert rule.convert([1, 2]) == (1, 2)
    assert not rule.accepts(value)


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0])
def test_runtime_checks_refuse_nan_infinity_and_negatives(value):
    with pytest.raises(ValueError, match="x="):
        checks.require_finite_positive("x", value)
    with pytest.raises(ValueError, match="x="):
        checks.require_finite_nonnegative("x", value)


def test_runtime_checks_differ_at_zero_only():
    assert checks.require_finite_nonnegative("x", 0) == 0.0
    with pytest.raises(ValueError, match="must be finite and > 0"):
        checks.require_finite_positive("x", 0)
    assert checks.require_finite_positive("x", 2) == 2.0


def test_json_gets_none_for_what_it_cannot_write():
    assert checks.finite_or_none(1.5) == 1.5
    assert checks.finite_or_none(INF) is None
    assert checks.finite_or_none(NAN) is None
