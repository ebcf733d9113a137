"""The delta asked for is the delta used, by every way of accounting."""

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from tf_dpfl.privacy.accounting import PLD, RDP, central_epsilon
from tf_dpfl.privacy.mechanism import GaussianRounds
from tf_dpfl.protocol.gaussian import gaussian_epsilon

ROUNDS = GaussianRounds(1.0, "poisson", 0.05, 20)
EVENT = dp_event.SelfComposedDpEvent(
    dp_event.PoissonSampledDpEvent(0.05, dp_event.GaussianDpEvent(1.0)), 20
)


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-8])
@pytest.mark.parametrize("accountant", [PLD, RDP])
def test_sampled_rounds_agree_with_dp_accounting_at_every_delta(accountant, delta):
    reference = PLDAccountant() if accountant == PLD else RdpAccountant()
    expected = reference.compose(EVENT).get_epsilon(delta)
    ours = central_epsilon([ROUNDS], delta=delta, accountant=accountant)
    assert ours == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-8])
def test_unsampled_rounds_are_the_closed_form_at_every_delta(delta):
    ours = central_epsilon([GaussianRounds(3.0, "fixed", 1.0, 4)], delta=delta)
    expected = gaussian_epsilon(noise_multiplier=3.0, delta=delta, reports=4)
    assert ours == pytest.approx(expected, rel=1e-9)
