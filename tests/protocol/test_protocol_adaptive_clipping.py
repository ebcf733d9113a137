"""How a noise multiplier is split between updates and the count, and which plans cannot."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol.adaptive_clipping import fault_of_noise, noise_multiplier_of_updates
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict


def only_fault(tree):
    with pytest.raises(PlanError) as caught:
        plan_from_dict(tree)
    (fault,) = caught.value.faults
    return fault


@given(noise=st.floats(1e-3, 1e5), room=st.floats(1.001, 1e3))
def test_the_inverse_squares_of_both_parts_add_up_to_that_of_the_whole(noise, room):
    count = room * noise / 2
    of_updates = noise_multiplier_of_updates(noise_multiplier=noise, clip_count_stddev=count)
    assert of_updates > noise or room > 1e7
    whole = (of_updates**-2 + (2 * count) ** -2) ** -0.5
    assert math.isclose(whole, noise, rel_tol=1e-9)


@pytest.mark.parametrize("noise", [2.0, 2.1, math.inf, math.nan])
def test_a_count_that_takes_all_of_the_noise_leaves_none_to_solve_for(noise):
    assert "clip_count_stddev" in fault_of_noise(noise, 1.0)
    with pytest.raises(ValueError, match="clip_count_stddev"):
        noise_multiplier_of_updates(noise_multiplier=noise, clip_count_stddev=1.0)


@pytest.mark.parametrize("count", [0.0, 2.5])
def test_no_noise_stays_none(count):
    assert noise_multiplier_of_updates(noise_multiplier=0.0, clip_count_stddev=count) == 0


def test_a_plan_has_the_papers_settings_unless_it_says_otherwise():
    plan = plan_from_dict(plan_tree(privacy={"adaptive_clipping": True}))
    assert (plan.privacy.target_quantile, plan.privacy.clip_learning_rate) == (0.5, 0.2)
    assert plan.clip_count_stddev == 50 / 20
    assert plan.noise_multiplier_of_updates == pytest.approx((1 - 5.0**-2) ** -0.5)
    silent = plan_tree(privacy={"adaptive_clipping": True, "noise_multiplier": 0.0})
    assert plan_from_dict(silent).clip_count_stddev == 0
    assert plan_from_dict(plan_to_dict(plan)) == plan


def test_a_plan_of_before_has_a_fixed_clip_norm_and_its_whole_noise():
    plan = plan_from_dict(plan_tree())
    assert not plan.privacy.adaptive_clipping
    assert plan.noise_multiplier_of_updates == plan.privacy.noise_multiplier


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_quantile", 0.0),
        ("target_quantile", 1.0),
        ("target_quantile", math.nan),
        ("clip_learning_rate", 0.0),
        ("clip_learning_rate", math.inf),
        ("clip_count_stddev", -1.0),
        ("clip_count_stddev", math.nan),
        ("adaptive_clipping", 1),
    ],
)
def test_settings_that_steer_nothing_are_refused(key, value):
    assert f"privacy.{key}=" in only_fault(plan_tree(privacy={key: value}))


def test_a_plan_without_room_for_the_count_says_what_to_raise():
    tree = plan_tree(privacy={"adaptive_clipping": True, "noise_multiplier": 5.0})
    fault = only_fault(tree)
    assert "privacy.clip_count_stddev to 5 or more" in fault and "clients_per_round" in fault
    tree["privacy"]["clip_count_stddev"] = 5.0
    assert plan_from_dict(tree).noise_multiplier_of_updates == pytest.approx(5 / 0.75**0.5)


@pytest.mark.parametrize("mechanism", ["banded", "tree", "auto"])
def test_correlated_noise_and_a_moving_clip_norm_are_refused(mechanism):
    tree = plan_tree(
        clients={"sampling": "poisson" if mechanism == "auto" else "min_separation"},
        privacy={"adaptive_clipping": True, "mechanism": mechanism, "noise": "server"},
    )
    if mechanism == "auto":
        tree["privacy"]["target_epsilon"] = tree["privacy"].pop("noise_multiplier")
    fault = only_fault(tree)
    assert f'"{mechanism}"' in fault and "scale" in fault


def test_single_examples_and_a_moving_clip_norm_are_refused():
    tree = plan_tree(privacy={"adaptive_clipping": True, "unit": "example", "delta": 1e-6})
    assert 'unit="example"' in only_fault(tree)


@pytest.mark.parametrize("clipping", ["per_layer", "value"])
@pytest.mark.parametrize("other", [{"adaptive_clipping": True}, {"unit": "example", "delta": 1e-6}])
def test_clipping_in_parts_goes_with_a_fixed_bound_on_whole_updates(clipping, other):
    fault = only_fault(plan_tree(privacy={"clipping": clipping, **other}))
    assert f'privacy.clipping="{clipping}"' in fault and 'set clipping = "global"' in fault
