"""Nothing is released that was not charged, and nothing is charged beyond the budget."""

import contextlib
import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.ledger import (
    Charge,
    Ledger,
    charges_from_lines,
    ledger_from_lines,
    ledger_to_lines,
)
from tf_dpfl.privacy.mechanism import GaussianRounds
from tf_dpfl.protocol.errors import BudgetError, StateError
from tf_dpfl.protocol.files import append_line_durably, drop_torn_line

DELTA = 1e-5
ROUND = GaussianRounds(1.0, "poisson", 0.1, 1)
OTHER = GaussianRounds(2.0, "fixed", 0.1, 1)


def test_an_empty_ledger_spent_nothing():
    assert Ledger(DELTA).epsilon == 0
    assert Ledger(DELTA, max_epsilon=0.0).charge(ROUND.with_rounds(0)).epsilon == 0


def test_charging_returns_another_ledger():
    before = Ledger(DELTA)
    after = before.charge(ROUND)
    assert before.spending == () and before.epsilon == 0
    assert after.spending == (ROUND,)
    assert after.epsilon == central_epsilon([ROUND], delta=DELTA) > 0
    with pytest.raises(FrozenInstanceError):
        after.spending = ()


def test_equal_charges_are_kept_as_one_and_cost_the_same():
    ledger = Ledger(DELTA)
    for mechanism in (ROUND, ROUND, OTHER, ROUND):
        ledger = ledger.charge(mechanism)
    assert ledger.spending == (ROUND.with_rounds(2), OTHER, ROUND)
    assert ledger.rounds == 4
    assert ledger.epsilon == central_epsilon([ROUND, ROUND, OTHER, ROUND], delta=DELTA)


def test_the_budget_is_refused_before_it_is_exceeded():
    ledger = Ledger(DELTA, max_epsilon=3.0)
    released = 0
    while central_epsilon([ROUND.with_rounds(released + 1)], delta=DELTA) <= 3.0:
        ledger = ledger.charge(ROUND)
        released += 1
    with pytest.raises(BudgetError) as caught:
        ledger.charge(ROUND)
    assert released > 3
    assert ledger.epsilon <= 3.0
    message = str(caught.value)
    assert "max_epsilon=3" in message and f"{ledger.epsilon:.6g}" in message
    assert "\n" not in message and "more noise" in message
    assert ledger.rounds == released  # the refused charge changed nothing


def test_without_a_limit_the_same_charges_go_through():
    ledger = Ledger(DELTA)
    for _ in range(40):
        ledger = ledger.charge(ROUND)
    assert ledger.epsilon > 3.0


def test_a_charge_without_noise_breaks_every_finite_budget():
    bare = replace(ROUND, noise_multiplier=0.0)
    with pytest.raises(BudgetError, match="infinite"):
        Ledger(DELTA, max_epsilon=1e300).charge(bare)
    assert Ledger(DELTA).charge(bare).epsilon == math.inf
    assert Ledger(DELTA, max_epsilon=math.inf).charge(bare).epsilon == math.inf


@pytest.mark.parametrize("limit", [math.nan, -1.0])
def test_a_limit_that_limits_nothing_is_refused(limit):
    """Pitfall 11: NaN compares false with everything, so it would never refuse."""
    with pytest.raises(ValueError, match="max_epsilon"):
        Ledger(DELTA, max_epsilon=limit)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan, -1.0])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        Ledger(delta)


SPENDING = st.lists(
    st.builds(
        GaussianRounds,
        st.sampled_from([0.5, 1.0]),
        st.sampled_from(["poisson", "fixed"]),
        st.sampled_from([0.1, 1.0]),
        st.integers(0, 3),
    ),
    max_size=6,
)


@given(SPENDING)
def test_a_ledger_is_recomputed_from_its_log_alone(spending):
    ledger = Ledger(DELTA, spending=tuple(spending))
    assert ledger_from_lines(ledger_to_lines(ledger), delta=DELTA) == ledger
    single = [Charge(mechanism, 3).to_line() for mechanism in spending]
    assert ledger_from_lines(single, delta=DELTA) == ledger


def test_prior_spending_comes_first_and_counts():
    lines = [Charge(ROUND, 1).to_line()]
    ledger = ledger_from_lines(lines, delta=DELTA, max_epsilon=9.0, prior=[OTHER])
    assert ledger.spending == (OTHER, ROUND) and ledger.max_epsilon == 9.0


def test_a_log_over_budget_is_read_and_refuses_the_next_charge():
    ledger = ledger_from_lines([Charge(ROUND).to_line()] * 50, delta=DELTA, max_epsilon=0.1)
    assert ledger.epsilon > 0.1
    with pytest.raises(BudgetError):
        ledger.charge(ROUND)


def test_charges_keep_their_rounds():
    lines = [Charge(ROUND, 1).to_line(), "", Charge(OTHER).to_line() + "\n"]
    assert charges_from_lines(lines) == (Charge(ROUND, 1), Charge(OTHER, None))
    assert charges_from_lines([]) == ()


@pytest.mark.parametrize("cut", range(1, len(Charge(ROUND, 2).to_line())))
def test_a_log_torn_anywhere_loses_only_what_was_never_released(cut):
    first, second = Charge(ROUND, 1).to_line(), Charge(ROUND, 2).to_line()
    assert charges_from_lines([first, second[:cut]]) == (Charge(ROUND, 1),)


@pytest.mark.parametrize("torn", ["\0\0\0", '{"version": 1', Charge(ROUND, 2).to_line()])
def test_a_crash_between_charges_is_repaired_on_disk(tmp_path, torn):
    """The line that was never ended was never told to be durable: it goes."""
    path = tmp_path / "ledger.jsonl"
    append_line_durably(path, Charge(ROUND, 1).to_line())
    with open(path, "a") as file:
        file.write(torn)
    drop_torn_line(path)
    append_line_durably(path, Charge(OTHER, 2).to_line())
    charges = charges_from_lines(path.read_text().splitlines())
    assert charges == (Charge(ROUND, 1), Charge(OTHER, 2))


GOOD = json.loads(Charge(ROUND, 1).to_line())


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[" * 100_000,
        "[]",
        "3",
        "null",
        "{}",
        json.dumps({**GOOD, "version": 2}),
        json.dumps({**GOOD, "version": True}),
        json.dumps({**GOOD, "extra": 1}),
        json.dumps({**GOOD, "round": 0}),
        json.dumps({**GOOD, "round": 1.5}),
        json.dumps({**GOOD, "round": True}),
        json.dumps({**GOOD, "charged": {}}),
        json.dumps({**GOOD, "charged": {**GOOD["charged"], "rounds": -1}}),
        json.dumps({**GOOD, "charged": {**GOOD["charged"], "noise_multiplier": math.nan}}),
        json.dumps({**GOOD, "charged": {**GOOD["charged"], "kind": "free"}}),
    ],
    ids=range(16),
)
def test_any_other_malformed_line_stops_the_reading(line):
    """A line nobody can read may have been a release: epsilon would be too small without it."""
    lines = [Charge(ROUND, 1).to_line(), line, Charge(ROUND, 2).to_line()]
    with pytest.raises(StateError, match="line 2"):
        charges_from_lines(lines)


@given(st.lists(st.text(max_size=40), max_size=4))
def test_no_log_raises_anything_but_a_state_error(lines):
    with contextlib.suppress(StateError):
        assert charges_from_lines(lines) == ()
