"""What a round with adaptive clipping costs: both of its releases, by dp_accounting."""

import pytest
from dp_accounting import dp_event, pld, rdp
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.local_privacy import local_epsilon


def adaptive(**privacy):
    return small_plan(privacy={"adaptive_clipping": True, **privacy})


def both_releases(plan):
    """The two Gaussian releases of a round, each by its own noise over its own sensitivity."""
    return dp_event.ComposedDpEvent(
        [
            dp_event.GaussianDpEvent(plan.noise_multiplier_of_updates),
            dp_event.GaussianDpEvent(plan.clip_count_stddev / 0.5),
        ]
    )


@pytest.mark.parametrize("noise", [0.6, 1.0, 3.0, 4.5])
@pytest.mark.parametrize("accountant", [rdp.RdpAccountant, pld.PLDAccountant])
def test_both_releases_together_cost_what_the_noise_multiplier_says(noise, accountant):
    plan = adaptive(noise_multiplier=noise)
    two = accountant().compose(both_releases(plan), 20).get_epsilon(1e-5)
    one = accountant().compose(dp_event.GaussianDpEvent(noise), 20).get_epsilon(1e-5)
    assert two == pytest.approx(one, rel=1e-3)
    cheaper = adaptive(noise_multiplier=noise * 1.05, clip_count_stddev=2.5)
    less = accountant().compose(both_releases(cheaper), 20).get_epsilon(1e-5)
    assert less < 0.99 * one  # the comparison sees five percent of noise


def test_what_is_charged_is_one_sampled_mechanism_of_both():
    plan = adaptive(noise_multiplier=1.0)
    charged = central_epsilon([mechanism_of_plan(plan, rounds=20)], delta=1e-5)
    sampled = dp_event.PoissonSampledDpEvent(0.05, both_releases(plan))
    orders = list(range(2, 257))
    theirs = rdp.RdpAccountant(orders).compose(sampled, 20).get_epsilon(1e-5)
    card = privacy_card(plan, rounds_done=20, sampling_enforced_by="the test")
    assert card.central_epsilon == charged
    assert card.central_epsilon_rdp == pytest.approx(theirs, rel=0.01)
    assert charged <= theirs


def test_a_single_report_costs_what_both_of_its_parts_cost():
    """Replace-one: the update moves by up to 2 clip norms, its half by up to 1; a share each."""
    plan = adaptive(noise_multiplier=1.0)
    share = plan.privacy.smallest_cohort**-0.5
    parts = [plan.noise_multiplier_of_updates * share / 2, plan.clip_count_stddev * share / 1]
    report = dp_event.ComposedDpEvent([dp_event.GaussianDpEvent(part) for part in parts])
    theirs = pld.PLDAccountant().compose(report, 1).get_epsilon(1e-5)
    assert local_epsilon(plan, reports=1) == pytest.approx(theirs, rel=1e-3)


def test_a_solved_noise_without_room_for_the_count_is_refused():
    target = {"noise_multiplier": None, "target_epsilon": 0.1}
    with pytest.raises(PlanError, match="clip_count_stddev"):
        calibrate_plan(adaptive(**target))
    plan = calibrate_plan(adaptive(**target, clip_count_stddev=20.0))
    assert plan.noise_multiplier_of_updates > plan.privacy.noise_multiplier > 5.0


def test_the_card_says_that_the_noise_multiplier_counts_both_releases():
    card = privacy_card(adaptive(), rounds_done=1, sampling_enforced_by="the test")
    assert card.to_json()["adaptive_clipping"] == {
        "target_quantile": 0.5,
        "clip_learning_rate": 0.2,
        "noise_multiplier_of_updates": pytest.approx(1.0206, rel=1e-4),
        "clip_count_stddev": 2.5,
    }
    text = " ".join(card.to_text().split())
    for part in (
        "starts at 0.5 and goes after the 0.5 quantile",
        "at least 1.02062 clip norms",
        "(at least 2.5)",
        "together one Gaussian mechanism of noise multiplier 1",
        "Released: the clip norm of each round",
    ):
        assert part in text, part
    fixed = privacy_card(small_plan(), rounds_done=1)
    assert fixed.to_json()["adaptive_clipping"] is None
    assert "each update clipped to norm 0.5, Gaussian noise" in " ".join(fixed.to_text().split())


@pytest.mark.parametrize("noise", ["device", "server"])
def test_the_words_fit_wherever_the_noise_is_added(noise):
    text = privacy_card(adaptive(noise=noise), rounds_done=1).to_text()
    assert f"added by the {noise}" in " ".join(text.split())


def test_the_card_trusts_the_server_to_name_all_devices_one_clip_norm():
    """Shares that follow another norm than the victim's would leave it its own share alone."""
    said = "names all devices of a round one clip norm"
    for plan, is_said in (
        (adaptive(noise_multiplier=1.0), True),
        (adaptive(noise_multiplier=1.0, noise="server"), False),
        (small_plan(), False),
    ):
        card = privacy_card(plan, rounds_done=0, sampling_enforced_by="the test")
        assert (said in card.to_json()["trust"]) is is_said


def test_the_card_says_what_the_neighbour_adds_to_the_count():
    """Zeroed out is the +-1/2 too: as a report of a zero update it would move the count by 1."""
    plan = adaptive(noise_multiplier=1.0)
    card = privacy_card(plan, rounds_done=0, sampling_enforced_by="the test")
    for column in (card.to_json()["central"], card.to_json()["central"]["if_cohorts_are_known"]):
        assert column["adjacency"].endswith("nothing to the count of unclipped updates")
