"""The clip norm of a round: its rule, its range, and what a device accepts as one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol.clip_norms import (
    LARGEST,
    SMALLEST,
    clip_norm_of_round,
    first_clip_norm,
    next_clip_norm,
)
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.plan import plan_from_dict


def plan_of(*, cohort=50, **privacy):
    tree = plan_tree(clients={"clients_per_round": cohort}, privacy={"adaptive_clipping": True})
    tree["privacy"].update(privacy)
    return plan_from_dict(tree)


FIXED = plan_from_dict(plan_tree())


@pytest.mark.parametrize("clip_norm", [1e-9, 0.1, 0.5, 9.999999999e11])
def test_it_starts_where_the_plan_says_as_a_float32_number(clip_norm):
    first = first_clip_norm(plan_of(clip_norm=clip_norm))
    assert first == np.float32(first) and 1e-9 <= first < 1e12
    assert first == pytest.approx(clip_norm, rel=1e-7)


@given(
    clip_norm=st.floats(1e-6, 1e6),
    unclipped=st.floats(-40, 40),
    rate=st.floats(0.01, 2),
    target=st.floats(0.01, 0.99),
)
def test_it_moves_by_the_exponential_of_what_is_missing_from_the_quantile(
    clip_norm, unclipped, rate, target
):
    """Andrew et al. 1905.03871, section 3.1: C exp(-rate (u - target)), u noised."""
    plan = plan_of(clip_learning_rate=rate, target_quantile=target)
    u = (unclipped + 25) / 50
    expected = clip_norm * math.exp(rate * (target - u))
    found = next_clip_norm(plan, clip_norm, unclipped=unclipped)
    assert found == np.float32(found)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unclipped", [-1e300, -1e9, 0.0, 1e9, 1e300])
@pytest.mark.parametrize("clip_norm", [SMALLEST, 1.0, LARGEST])
def test_it_stays_one_that_a_plan_may_name(unclipped, clip_norm):
    plan = plan_of(clip_learning_rate=900.0)
    found = next_clip_norm(plan, clip_norm, unclipped=unclipped)
    if unclipped:
        assert found == (SMALLEST if unclipped > 0 else LARGEST)
    assert SMALLEST <= found <= LARGEST
    assert clip_norm_of_round(plan, found) == found == first_clip_norm(plan_of(clip_norm=found))


@pytest.mark.parametrize(
    "told", [0.0, -1.0, 1e-10, 1e12, 1e30, math.inf, -math.inf, math.nan, 0.999e-9]
)
def test_a_clip_norm_that_no_round_can_have_is_refused(told):
    with pytest.raises(WireError, match="clip_norm"):
        clip_norm_of_round(plan_of(), told)


def test_a_clip_norm_that_is_not_told_or_is_not_the_plans_is_refused():
    with pytest.raises(WireError, match="clip_norm is missing"):
        clip_norm_of_round(plan_of(), None)
    with pytest.raises(WireError, match="fixes clip_norm=0.5"):
        clip_norm_of_round(FIXED, 0.5)
    assert clip_norm_of_round(FIXED, None) == 0.5
