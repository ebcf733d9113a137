"""Folds of users: nobody is on both sides, a score moves by at most one user, and is noised."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import digits_plan, small_mlp

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.simulation.tuning_folds import (
    accuracy_of_users,
    draw_folds,
    split_off,
    sum_of_accuracies,
    with_noise,
)

PLAN = digits_plan(noise_multiplier=1.0)


@pytest.fixture(scope="module")
def data():
    """Digits whose target is the number of its row, so that each row is known again."""
    loaded = load_federated_data(PLAN)
    return replace(loaded, target=np.arange(len(loaded.target), dtype=np.int32))


def test_every_user_is_held_out_once():
    folds = draw_folds(41, 4, random=Random(1))
    assert [len(fold) for fold in folds] == [11, 10, 10, 10]
    assert sorted(np.concatenate(folds).tolist()) == list(range(41))
    again = draw_folds(41, 4, random=Random(1))
    assert all((a == b).all() for a, b in zip(folds, again))
    assert any((a != b).any() for a, b in zip(folds, draw_folds(41, 4, random=Random(2))))


def test_nobody_is_in_training_and_held_out(data):
    for held_out in draw_folds(data.population, 3, random=Random(0)):
        fold = split_off(data, held_out, limit=10)
        trained, judged = set(fold.training.target.tolist()), set(fold.held_out["y"].tolist())
        assert not trained & judged
        assert len(trained) + len(judged) == len(data.target)
        mine = [data.client(user)["y"].tolist() for user in held_out]
        assert judged == {row for rows in mine for row in rows}
        assert fold.training.population == data.population - len(held_out)
        assert fold.training.test_examples == 0  # nothing to look at while training


def test_users_keep_their_own_examples(data):
    held_out = np.array([0, 3, 39])
    fold = split_off(data, held_out, limit=4)
    others = [user for user in range(40) if user not in held_out]
    for new, old in enumerate(others):
        there, here = fold.training.client(new), data.client(old)
        np.testing.assert_array_equal(there["y"], here["y"][:4])
        np.testing.assert_array_equal(there["x"], here["x"][:4])
        assert fold.training.client_names[new] == data.client_names[old]
    assert fold.counts.tolist() == [min(4, len(data.client(user)["y"])) for user in held_out]
    ends = np.cumsum(fold.counts)
    for user, end, count in zip(held_out, ends, fold.counts):
        np.testing.assert_array_equal(
            fold.held_out["x"][end - count : end], data.client(user)["x"][:4]
        )


users = st.lists(st.lists(st.booleans(), max_size=5), min_size=1, max_size=6)


def score_of(answers):
    counts = np.array([len(answer) for answer in answers], np.int64)
    right = np.array([right for answer in answers for right in answer], float)
    return sum_of_accuracies(right, counts)


@given(users, st.integers(0, 5), st.lists(st.booleans(), max_size=50))
def test_one_user_moves_the_score_by_at_most_one(answers, place, other):
    """Whatever the user holds: replaced, zeroed out or not there."""
    place %= len(answers)
    whole = score_of(answers)
    replaced = [*answers[:place], other, *answers[place + 1 :]]
    assert abs(score_of(replaced) - whole) <= 1 + 1e-9
    assert abs(score_of([*answers[:place], *answers[place + 1 :]]) - whole) <= 1 + 1e-9
    # Examples counted alike instead, a user with many of them would move it further.
    exact = sum(sum(answer) / len(answer) for answer in answers if answer)
    assert whole == pytest.approx(exact, abs=1e-9)


def test_users_weigh_equally_however_many_examples_they_have():
    assert score_of([[True] * 100, [False]]) == 1.0
    assert score_of([[True], [False] * 100, []]) == 1.0


def test_the_score_carries_the_noise_that_is_accounted_for():
    draws = np.array([with_noise(30.25, stddev=5.0) - 30.25 for _ in range(4000)])
    assert draws.std() == pytest.approx(5.0, rel=0.05)
    assert draws.mean() == pytest.approx(0.0, abs=5 * 5 / math.sqrt(4000))
    assert len(set(draws)) > 2000  # from the operating system, anew for each score


def test_nothing_of_the_sum_is_left_below_the_noise():
    for _ in range(100):
        value = with_noise(1 / 3, stddev=5.0) * 256
        assert value == round(value)


def test_a_model_is_judged_on_the_held_out_users():
    data = load_federated_data(PLAN)
    fold = split_off(data, np.arange(7), limit=10)
    model = small_mlp()
    total = 0.0
    for user in range(7):
        examples = data.client(user)
        logits = model.predict(examples["x"], verbose=0)
        total += (logits.argmax(1) == examples["y"]).mean()
    assert accuracy_of_users(fold, model, PLAN.local_training) == pytest.approx(total, abs=1e-6)
