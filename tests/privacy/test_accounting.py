"""Epsilons agree with independent sources, and err upwards where they err at all."""

import math
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event, rdp
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from dp_accounting.privacy_accountant import NeighboringRelation
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dpfl.privacy.accounting import account, accountant_versions, central_epsilon
from tf_dpfl.privacy.mechanism import GaussianRounds
from tf_dpfl.protocol.gaussian import gaussian_epsilon

DELTA = 1e-5


def poisson(noise, probability, rounds):
    return GaussianRounds(noise, "poisson", probability, rounds)


def fixed(noise, probability, rounds):
    return GaussianRounds(noise, "fixed", probability, rounds)


def epsilon(*spending, delta=DELTA, accountant="pld"):
    return central_epsilon(spending, delta=delta, accountant=accountant)


def exact_delta(mechanism, eps, *, grid=2e-4):
    """delta of Poisson rounds by quadrature over the losses' characteristic function.

    Nothing of dp_accounting: the loss of one round is sampled on a fine grid of
    outcomes, its density rounded to a grid of losses (upwards), convolved by
    FFT; both directions, the larger delta. A lower bound by rounding down.
    """
    z, q, n = mechanism.noise_multiplier, mechanism.sampling_probability, mechanism.rounds
    x = np.linspace(-12 * z, 1 + 12 * z, 400_001)
    dx = x[1] - x[0]
    base = np.exp(-(x**2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi)) * dx
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z)))
    deltas = []
    for density, privacy_loss in ((base * np.exp(loss), loss), (base, -loss)):
        values = []
        for rounding in (np.floor, np.ceil):
            index = rounding(privacy_loss / grid).astype(int)
            low = index.min()
            mass = np.bincount(index - low, weights=density)
            size = 1 << int(np.ceil(np.log2(len(mass) * n)))
            composed = np.fft.irfft(np.fft.rfft(mass, size) ** n, size)
            losses = (np.arange(size) + low * n) * grid
            above = losses > eps
            values.append(float(np.sum(composed[above] * -np.expm1(eps - losses[above]))))
        deltas.append(values)
    return max(d[0] for d in deltas), max(d[1] for d in deltas)


GOLDEN = [
    poisson(1.0, 0.1, 100),
    poisson(1.0, 0.001, 10_000),
    poisson(20.0, 0.1, 1000),
    poisson(0.6, 1 / 30, 100),
    poisson(0.7, 0.5, 100),
    poisson(2.0, 0.5, 10),
    poisson(5.0, 0.01, 1000),
    poisson(0.3, 0.1, 100),
    poisson(0.5, 1e-5, 1000),
    poisson(1.3, 0.05, 1),
]


@pytest.mark.parametrize("mechanism", GOLDEN, ids=str)
def test_poisson_agrees_with_dp_accountings_pld(mechanism):
    # Fine beside one round's loss: its deviation is about q / z, or several when z < 1.
    fine = 5e-5 if mechanism.sampling_probability < 0.01 else 2e-4 / mechanism.noise_multiplier
    one = from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_probability,
        value_discretization_interval=fine,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    theirs = one.self_compose(mechanism.rounds).get_epsilon_for_delta(DELTA)
    assert epsilon(mechanism) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("mechanism", [poisson(1.0, 0.1, 20), poisson(2.0, 0.3, 5)], ids=str)
def test_poisson_agrees_with_an_accountant_written_for_this_test(mechanism):
    ours = epsilon(mechanism)
    assert exact_delta(mechanism, ours)[0] <= DELTA * 1.001  # truly private at this epsilon
    assert exact_delta(mechanism, ours * 0.99)[1] > DELTA  # and at 1 % less not


@pytest.mark.parametrize("mechanism", GOLDEN[:8], ids=str)
def test_rdp_agrees_with_dp_accounting_and_lies_above_pld(mechanism):
    accountant = rdp.RdpAccountant(list(range(2, 257)) + [512, 1024])
    event = dp_event.PoissonSampledDpEvent(
        mechanism.sampling_probability, dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    )
    accountant.compose(event, mechanism.rounds)
    theirs = accountant.get_epsilon(DELTA)
    ours = epsilon(mechanism, accountant="rdp")
    assert ours == pytest.approx(theirs, rel=0.01)
    assert epsilon(mechanism) <= ours


@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("rounds", [1, 100])
@pytest.mark.parametrize("kind", [poisson, fixed])
def test_everyone_in_every_round_is_the_closed_form(noise, rounds, kind):
    expected = gaussian_epsilon(noise_multiplier=noise, delta=DELTA, reports=rounds)
    assert epsilon(kind(noise, 1.0, rounds)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_agrees_with_tensorflow_privacy():
    """In a process of its own: tensorflow_privacy loads TensorFlow."""
    program = (
        "from tensorflow_privacy.privacy.analysis import compute_dp_sgd_privacy_lib as lib\n"
        "print(repr(lib.compute_dp_sgd_privacy(60000, 256, 1.1, 15, 1e-5)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    theirs = float(done.stdout.strip().splitlines()[-1].strip("()").split(",")[0])
    mechanism = poisson(1.1, 256 / 60000, 15 * 60000 // 256 + 1)
    assert epsilon(mechanism, accountant="rdp") == pytest.approx(theirs, rel=0.01)
    assert 0.8 * theirs < epsilon(mechanism) <= theirs * 1.001


# --- fixed-size cohorts ------------------------------------------------------


def without_replacement(noise, members, population, rounds, orders=None):
    """dp_accounting's bound for a sum whose sensitivity under replace-one is 1."""
    accountant = rdp.RdpAccountant(orders, NeighboringRelation.REPLACE_ONE)
    event = dp_event.SampledWithoutReplacementDpEvent(
        population, members, dp_event.GaussianDpEvent(noise)
    )
    accountant.compose(event, rounds)
    return accountant.get_epsilon(DELTA)


def test_dp_accountings_noise_there_is_over_the_replace_one_sensitivity():
    """Everyone sampled: the event is the plain Gaussian, deviation over sensitivity."""
    plain = rdp.RdpAccountant(None, NeighboringRelation.REPLACE_ONE)
    plain.compose(dp_event.GaussianDpEvent(3.0), 10)
    assert without_replacement(3.0, 50, 50, 10) == pytest.approx(plain.get_epsilon(DELTA))


@pytest.mark.parametrize(("noise", "rounds"), [(20.0, 100), (4.0, 100), (2.0, 10)])
def test_fixed_cohorts_have_twice_the_sensitivity(noise, rounds):
    mechanism = fixed(noise, 10 / 1000, rounds)
    result = account([mechanism], delta=DELTA)
    bound = without_replacement(noise / 2, 10, 1000, rounds)
    plain = gaussian_epsilon(noise_multiplier=noise, delta=DELTA, reports=rounds)
    assert result.epsilon == pytest.approx(min(bound, plain), rel=0.01)
    assert result.relation == "zero-out"
    wrong = without_replacement(noise, 10, 1000, rounds)
    assert result.epsilon > 1.3 * wrong  # what forgetting the doubling would claim


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0, 10.0, 40.0])
@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5])
def test_fixed_cohorts_never_get_poissons_amplification(noise, probability):
    """Pitfall 7: a cohort of fixed size is not a Poisson sample."""
    assert epsilon(fixed(noise, probability, 50)) > epsilon(poisson(noise, probability, 50))
    plain = gaussian_epsilon(noise_multiplier=noise, delta=DELTA, reports=50)
    assert epsilon(fixed(noise, probability, 50)) <= plain


def test_the_relation_is_the_one_that_holds():
    assert account([poisson(1.0, 0.1, 3)], delta=DELTA).relation == "add-or-remove-one"
    assert account([fixed(1.0, 1.0, 3)], delta=DELTA).relation == "zero-out"
    mixed = [poisson(1.0, 0.1, 3), fixed(1.0, 0.1, 3)]
    assert account(mixed, delta=DELTA).relation == "zero-out"


# --- composition -------------------------------------------------------------


def test_mixed_spending_counts_fixed_rounds_unamplified():
    spending = [poisson(1.0, 0.1, 50), fixed(4.0, 0.1, 20)]
    one = from_gaussian_mechanism(1.0, sampling_prob=0.1, value_discretization_interval=1e-4)
    plain = from_gaussian_mechanism(4.0 / math.sqrt(20), value_discretization_interval=1e-4)
    theirs = one.self_compose(50).compose(plain).get_epsilon_for_delta(DELTA)
    assert epsilon(*spending) == pytest.approx(theirs, rel=0.01)
    assert epsilon(*spending) > epsilon(spending[0], poisson(4.0, 0.1, 20))


def test_different_poisson_rounds_compose():
    first, second = poisson(1.0, 0.1, 50), poisson(2.0, 0.02, 50)
    plds = [
        privacy_loss_distribution.from_gaussian_mechanism(
            m.noise_multiplier,
            sampling_prob=m.sampling_probability,
            value_discretization_interval=1e-4,
        ).self_compose(m.rounds)
        for m in (first, second)
    ]
    theirs = plds[0].compose(plds[1]).get_epsilon_for_delta(DELTA)
    assert epsilon(first, second) == pytest.approx(theirs, rel=0.01)
    assert max(epsilon(first), epsilon(second)) < epsilon(first, second)
    assert epsilon(first, second) <= epsilon(first) + epsilon(second) + 1e-9


def test_order_and_grouping_do_not_matter():
    a, b = poisson(1.0, 0.1, 6), fixed(2.0, 0.1, 4)
    split = [a.with_rounds(2), b.with_rounds(1), a.with_rounds(4), b.with_rounds(3)]
    assert epsilon(*split) == epsilon(a, b)
    assert epsilon(b, a) == pytest.approx(epsilon(a, b), rel=1e-9)


def test_plain_rounds_of_different_noise_are_one_gaussian():
    expected = gaussian_epsilon(noise_multiplier=1 / math.sqrt(3 / 4 + 2 / 9), delta=DELTA)
    assert epsilon(poisson(2.0, 1.0, 3), fixed(3.0, 1.0, 2)) == pytest.approx(expected)


# --- limits and monotony -----------------------------------------------------


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("kind", [poisson, fixed])
@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_the_limits(accountant, kind, probability):
    def at(*spending):
        return epsilon(*spending, accountant=accountant)

    assert at() == 0
    assert at(kind(1.0, probability, 0)) == 0
    assert at(kind(0.0, probability, 0)) == 0
    assert at(kind(0.0, probability, 1)) == math.inf
    assert at(kind(1.0, probability, 5), kind(0.0, probability, 1)) == math.inf
    assert at(kind(1e300, probability, 5)) < 1e-3
    assert at(kind(1e-300, probability, 5)) == math.inf


@settings(max_examples=12)
@given(
    noise=st.floats(0.05, 30),
    more=st.floats(1.05, 3),
    probability=st.floats(1e-4, 1),
    rounds=st.integers(1, 300),
    kind=st.sampled_from([poisson, fixed]),
)
def test_less_noise_more_rounds_and_more_sampling_never_cost_less(
    noise, more, probability, rounds, kind
):
    base = epsilon(kind(noise, probability, rounds))
    tolerance = 1.01  # the grid's
    assert epsilon(kind(noise * more, probability, rounds)) <= base * tolerance
    assert base <= epsilon(kind(noise, probability, rounds + 1)) * tolerance
    assert base <= epsilon(kind(noise, min(1.0, probability * more), rounds)) * tolerance
    assert base <= epsilon(kind(noise, probability, rounds), delta=DELTA / 10) * tolerance


@settings(max_examples=40)
@given(
    noise=st.floats(0.01, 100),
    probability=st.floats(1e-5, 1),
    rounds=st.integers(1, 1000),
    delta=st.floats(1e-30, 0.1),
    kind=st.sampled_from([poisson, fixed]),
)
def test_amplification_never_costs(noise, probability, rounds, delta, kind):
    plain = gaussian_epsilon(noise_multiplier=noise, delta=delta, reports=rounds)
    assert 0 <= epsilon(kind(noise, probability, rounds), delta=delta) <= plain * (1 + 1e-9)


@pytest.mark.parametrize(
    "mechanism",
    [
        poisson(1e-5, 0.1, 100),
        poisson(0.019, 0.1, 10**6),
        poisson(0.021, 0.5, 10**6),
        poisson(0.05, 1e-3, 10**5),
        poisson(1.0, 1e-9, 10**6),
        poisson(0.5, 0.9, 10**9),
        poisson(1000.0, 0.5, 10**6),
        fixed(1e-5, 1e-3, 10**9),
        fixed(1e5, 1e-9, 10**9),
    ],
    ids=str,
)
def test_extremes_end_and_stay_above_what_they_bound(mechanism):
    began = time.process_time()
    value = epsilon(mechanism)
    assert 0 <= value < math.inf
    assert time.process_time() - began < 60  # a hang, not a benchmark
    assert epsilon(replace(mechanism, rounds=1)) <= value * 1.01


@pytest.mark.parametrize("delta", [1e-13, 1e-20, 1e-100])
def test_tiny_deltas_are_not_lost_in_rounding(delta):
    mechanism = poisson(1.0, 0.1, 100)
    value = epsilon(mechanism, delta=delta)
    assert value == epsilon(mechanism, delta=delta, accountant="rdp") or value == pytest.approx(
        gaussian_epsilon(noise_multiplier=1.0, delta=delta, reports=100)
    )
    assert epsilon(mechanism, delta=1e-9) < value < math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta="):
        central_epsilon([poisson(1.0, 0.1, 1)], delta=delta)


def test_an_unknown_accountant_is_refused():
    with pytest.raises(ValueError, match="accountant="):
        epsilon(poisson(1.0, 0.1, 1), accountant="moments")


def test_the_library_is_named_with_its_version():
    assert accountant_versions() == "dp_accounting 0.6.0"


def test_importing_the_room_imports_no_accountant_and_no_tensorflow():
    program = (
        "import sys, tf_dpfl.privacy.card, tf_dpfl.privacy.calibration, tf_dpfl.privacy.ledger\n"
        "heavy = {'dp_accounting', 'scipy', 'tensorflow', 'jax', 'keras'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from tf_dpfl.privacy.accounting import central_epsilon\n"
        "from tf_dpfl.privacy.mechanism import GaussianRounds as G\n"
        "central_epsilon([G(1.0, 'poisson', .1, 2), G(1.0, 'fixed', .1, 2)], delta=1e-5)\n"
        "heavy = {'tensorflow', 'jax', 'keras'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_little_noise_overflows_without_a_warning():
    """dp_accounting divides by a mass near 1e-308 there; the closed form is the bound left."""
    little = poisson(0.04711591892517558, 0.2, 3)
    assert 200 < epsilon(little, delta=1e-3) <= epsilon(little.unamplified(), delta=1e-3)
