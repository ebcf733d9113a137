"""Sensitivity and error of banded factors and trees: held to the matrices themselves."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from correlated_plans import DELTA, TREE, toeplitz
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.rdp import RdpAccountant

from tf_dpfl.privacy.accounting import RDP, central_epsilon
from tf_dpfl.privacy.factorisation import (
    banded_coefficients,
    banded_prefix_error,
    banded_sensitivity,
)
from tf_dpfl.privacy.tree import tree_prefix_error, tree_sensitivity


def patterns(rounds, separation):
    """Every set of rounds, 0 to rounds - 1, at least `separation` apart; none of them empty."""
    for size in range(1, rounds + 1):
        for chosen in itertools.combinations(range(rounds), size):
            if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
                yield list(chosen)


def complete_nodes(rounds):
    """Which rounds are in which complete node, [nodes, rounds]."""
    rows = []
    for level in range(rounds.bit_length()):
        length = 1 << level
        for start in range(0, rounds - length + 1, length):
            rows.append([start <= t < start + length for t in range(rounds)])
    return np.array(rows, np.float64)


def worst(matrix, rounds, separation):
    """The largest norm of the sum of a pattern's columns: updates of norm 1, all alike.

    Entries are not negative, so no other updates of norm at most 1 give a larger one.
    """
    assert (matrix >= 0).all()
    return max(np.linalg.norm(matrix[:, p].sum(axis=1)) for p in patterns(rounds, separation))


# --- The factorisation --------------------------------------------------------


def test_without_bands_the_factor_is_the_square_root_of_the_prefix_sums():
    factor = np.zeros((30, 30))
    for offset, value in enumerate(banded_coefficients(30)):
        factor += np.diag(np.full(30 - offset, value), -offset)
    np.testing.assert_allclose(factor @ factor, np.tril(np.ones((30, 30))), atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 2, 5, 8, 11, 12])
@pytest.mark.parametrize(("bands", "separation"), [(1, 1), (1, 3), (2, 3), (3, 3), (4, 4), (5, 7)])
def test_sensitivity_of_bands_is_that_of_the_worst_pattern(rounds, bands, separation):
    stated = banded_sensitivity(bands=bands, separation=separation, rounds=rounds)
    found = worst(toeplitz(bands, rounds), rounds, separation)
    assert found <= stated * (1 + 1e-12)
    if rounds % separation == 0 or rounds % separation >= bands:
        # The last participation's column is whole: the formula is exact.
        assert found == pytest.approx(stated, rel=1e-12)


@pytest.mark.parametrize("rounds", [1, 3, 4, 9])
@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_without_a_separation_every_round_counts_and_adds_up(rounds, bands):
    stated = banded_sensitivity(bands=bands, separation=1, rounds=rounds)
    assert stated == pytest.approx(worst(toeplitz(bands, rounds), rounds, 1), rel=1e-12)


def test_bands_beyond_the_separation_have_no_formula():
    with pytest.raises(ValueError, match="separation"):
        banded_sensitivity(bands=4, separation=3, rounds=10)


@pytest.mark.parametrize(("bands", "rounds"), [(1, 1), (1, 20), (4, 3), (5, 20), (20, 20)])
def test_error_of_bands_is_the_one_of_the_matrix(bands, rounds):
    rows = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(toeplitz(bands, rounds))
    expected = math.sqrt((rows**2).sum(axis=1).mean())
    assert banded_prefix_error(bands=bands, rounds=rounds) == pytest.approx(expected, rel=1e-9)


def running_mean(rounds, momentum):
    """[rounds, rounds]: row t weighs what was s rounds ago by (1 - b) b^s."""
    age = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    return (1 - momentum) * np.where(age >= 0, momentum ** np.abs(age).astype(float), 0.0)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize(("bands", "rounds"), [(1, 1), (1, 20), (4, 3), (5, 20)])
def test_error_of_bands_under_momentum_is_the_one_of_the_matrix(bands, rounds, momentum):
    sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(toeplitz(bands, rounds))
    rows = running_mean(rounds, momentum) @ sums
    expected = math.sqrt((rows**2).sum(axis=1).mean())
    found = banded_prefix_error(bands=bands, rounds=rounds, momentum=momentum)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rounds", [1, 2, 7, 8, 13, 40])
def test_error_of_a_tree_under_momentum_is_the_one_of_least_squares(rounds, momentum):
    """A prefix is estimated from the noised nodes of its complete trees, as well as can be."""
    nodes = [
        np.isin(np.arange(rounds), np.arange(start, start + 2**level)).astype(float)
        for level in range(rounds.bit_length())
        for start in range(0, rounds - 2**level + 1, 2**level)
    ]
    prefixes = []
    for length in range(1, rounds + 1):
        known = np.array([node if not node[length:].any() else 0 * node for node in nodes])
        prefix = (np.arange(rounds) < length).astype(float)
        prefixes.append(np.linalg.pinv(known.T) @ prefix)
    rows = running_mean(rounds, momentum) @ np.array(prefixes)
    expected = math.sqrt((rows**2).sum(axis=1).mean())
    assert tree_prefix_error(rounds=rounds, momentum=momentum) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("rounds", "bands", "gain"), [(100, 10, 2.3), (1000, 100, 5.9)])
def test_bands_gain_what_the_field_notes_say_over_independent_noise(rounds, bands, gain):
    """Both without any sampling assumed: independent noise is one band, in every round."""
    banded = banded_sensitivity(bands=bands, separation=bands, rounds=rounds)
    banded *= banded_prefix_error(bands=bands, rounds=rounds)
    independent = banded_sensitivity(bands=1, separation=bands, rounds=rounds)
    independent *= banded_prefix_error(bands=1, rounds=rounds)
    assert independent / banded == pytest.approx(gain, rel=0.05)


# --- The tree -----------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 8, 11, 13])
@pytest.mark.parametrize("separation", [1, 2, 3, 4, 5, 8, 20])
def test_sensitivity_of_a_tree_is_that_of_the_worst_pattern(rounds, separation):
    stated = tree_sensitivity(separation=separation, rounds=rounds)
    assert stated == pytest.approx(worst(complete_nodes(rounds), rounds, separation), rel=1e-12)


@pytest.mark.parametrize(("rounds", "separation"), [(31, 3), (40, 7), (64, 10), (100, 20)])
def test_sensitivity_of_a_tree_is_tensorflow_privacys(rounds, separation):
    from tensorflow_privacy.privacy.analysis import tree_aggregation_accountant as theirs

    most = -(-rounds // separation)
    # They count the rounds between two participations.
    zcdp = theirs.compute_zcdp_single_tree(1.0, rounds, most, separation - 1)
    ours = tree_sensitivity(separation=separation, rounds=rounds)
    assert ours == pytest.approx(math.sqrt(2 * zcdp), rel=1e-12)


def test_a_user_of_one_round_meets_one_node_of_each_level():
    for rounds in (1, 2, 100, 128, 16_384):
        expected = math.sqrt(rounds.bit_length())
        assert tree_sensitivity(separation=rounds, rounds=rounds) == pytest.approx(expected)
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_event.SingleEpochTreeAggregationDpEvent(3.0, 100))
    spent = [replace(TREE, separation=100)]
    epsilon = central_epsilon(spent, delta=DELTA, accountant=RDP)
    assert epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=0.01)


@pytest.mark.parametrize("rounds", [1, 2, 7, 8, 100])
def test_error_of_a_tree_is_the_one_of_its_weights(rounds):
    """A tree of level l: variance 1 of a leaf, then half of it and one more node."""
    variance = [1.0]
    for _ in range(10):
        # Two estimates of one sum: from the children, 2 v, and from the node itself, 1.
        variance.append(2 * variance[-1] / (2 * variance[-1] + 1))
    per_prefix = [
        sum(variance[level] for level in range(10) if t >> level & 1) for t in range(1, rounds + 1)
    ]
    assert tree_prefix_error(rounds=rounds) == pytest.approx(math.sqrt(np.mean(per_prefix)))
