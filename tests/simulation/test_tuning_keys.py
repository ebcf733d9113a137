"""What a search varies, read and checked before anything runs."""

from random import Random

import pytest
from plans import digits_plan

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.simulation.tuning_keys import corners, draw, grid, read_keys
from tf_dpfl.simulation.tuning_plans import fold_sizes, plan_without, search_of

PLAN = digits_plan(noise_multiplier=1.0)


def search(*over, data_is="public", plan=PLAN, **options):
    return search_of(plan, over, data_is=data_is, **options)


def faults_of(*over, **options):
    with pytest.raises(PlanError) as caught:
        search(*over, **options)
    return caught.value.faults


def test_a_key_without_a_section_is_found_in_the_named_order():
    keys = read_keys(["learning_rate=0.1,1", "clip_norm=1,2", "rounds=1,2", "sampling=fixed"])
    names = [key.name for key in keys]
    assert names == [
        "local_training.learning_rate",
        "privacy.clip_norm",
        "server.rounds",
        "clients.sampling",
    ]
    assert keys[0].also_in == ("server",) and keys[1].also_in == ()
    (named,) = read_keys(["server.learning_rate=0.1,1"])
    assert named.name == "server.learning_rate" and named.also_in == ()


def test_a_range_has_points_of_equal_ratio_and_a_list_stays_as_it_is():
    rates, norms = read_keys(["learning_rate=0.01,0.1,1", "clip_norm=0.1..10"], points=3)
    assert rates.values == (0.01, 0.1, 1.0) and rates.ends is None
    assert norms.values == (0.1, 1.0, 10) and norms.ends == (0.1, 10)
    (five,) = read_keys(["clip_norm=0.1..10"])
    assert len(five.values) == 5
    (momentum,) = read_keys(["server.momentum=0..0.8"], points=3)
    assert momentum.values == (0, 0.4, 0.8)  # equal distances from 0 on
    (rounds,) = read_keys(["rounds=1..4"], points=10)
    assert rounds.values == (1, 2, 3, 4)  # whole numbers, each once


def test_a_grid_is_every_combination_and_corners_are_the_ends_of_ranges():
    keys = read_keys(["clip_norm=0.1..10", "optimizer=sgd,adam"], points=3)
    assert len(grid(keys)) == 6
    assert grid(keys)[1] == {"privacy.clip_norm": 0.1, "local_training.optimizer": "adam"}
    assert [s["privacy.clip_norm"] for s in corners(keys)] == [0.1, 0.1, 10, 10]


def test_draws_keep_to_their_range_log_uniformly():
    keys = read_keys(["clip_norm=0.01..1", "rounds=1..5", "server.momentum=0..0.8"])
    drawn = [draw(keys, mean_tries=1, random=Random(i))[0] for i in range(2000)]
    norms = [setting["privacy.clip_norm"] for setting in drawn]
    assert all(0.01 <= norm <= 1 for norm in norms)
    assert sum(norm < 0.1 for norm in norms) / 2000 == pytest.approx(0.5, abs=0.05)
    assert {setting["server.rounds"] for setting in drawn} == {1, 2, 3, 4, 5}
    momenta = [setting["server.momentum"] for setting in drawn]
    assert sum(momentum < 0.4 for momentum in momenta) / 2000 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("mean", [1, 3, 12.5])
def test_the_number_of_tries_is_geometric(mean):
    keys, random = read_keys(["clip_norm=1,2"]), Random(0)
    counts = [len(draw(keys, mean_tries=mean, random=random)) for _ in range(20_000)]
    assert min(counts) == 1
    assert sum(counts) / len(counts) == pytest.approx(mean, rel=0.03)
    for k in (1, 2, 5):
        exact = (1 / mean) * (1 - 1 / mean) ** (k - 1)
        assert counts.count(k) / len(counts) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("clip_norm", "must read KEY=VALUES"),
        ("clip_norm=", "must read KEY=VALUES"),
        ("colour=1,2", "no key 'colour'"),
        ("server.clip_norm=1,2", "no key 'clip_norm' in [server]"),
        ("nowhere.x=1", "no section [nowhere]"),
        ("clip_norm=0,1", "privacy.clip_norm=0 must be a finite number >= 1e-09"),
        ("clip_norm=nan,1", "privacy.clip_norm=nan must be"),
        ("clip_norm=1,1.0", "a value comes twice"),
        ("clip_norm=3..0.1", "LOW < HIGH"),
        ("clip_norm=1..", "two finite numbers"),
        ("clip_norm=0.1..inf", "two finite numbers"),
        ("rounds=1..2.5", "ends in whole numbers"),
        ("rounds=1.5,2", "server.rounds=1.5 must be an integer"),
        ("optimizer=a..b", "a range is for numbers"),
        ("optimizer=sgd,rmsprop", "local_training.optimizer='rmsprop' must be"),
        ("delta=1e-4,1e-5", "privacy.delta cannot be searched"),
        ("population=40,80", "clients.population cannot be searched"),
        ("data.partition_seed=1,2", "data.partition_seed cannot be searched"),
        ("simulation.evaluate_every=1,2", "simulation.evaluate_every cannot be searched"),
    ],
)
def test_a_key_or_value_that_cannot_be_used_is_named(over, said):
    (fault,) = faults_of(over)
    assert said in fault and over in fault


def test_all_faults_come_at_once():
    faults = faults_of("clip_norm=0,1", "colour=1", data_is="mine", folds=1)
    assert len(faults) == 4
    assert any("--folds 1" in fault for fault in faults)
    assert any("--data 'mine'" in fault for fault in faults)


def test_contradictions_name_the_setting_that_causes_them_once():
    faults = faults_of("clients_per_round=2,8", "clip_norm=1,2,3")
    (fault,) = faults
    assert fault.startswith(
        "with clients.clients_per_round=2, privacy.clip_norm=1 (and 2 more settings): "
    )
    assert "privacy.smallest_cohort=4 must be at most" in fault


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "random", "points": 3}, "--points is for --method grid"),
        ({"mean_tries": 3.0}, "--mean-tries is for --method random"),
        ({"method": "random", "mean_tries": 0.5}, "--mean-tries 0.5"),
        ({"method": "random", "mean_tries": float("nan")}, "--mean-tries nan"),
        ({"folds": 41}, "--folds 41"),
        ({"folds": 2, "score_noise": 1.0}, "--score-noise is for"),
        ({"folds": 2, "score_noise": float("nan"), "data_is": "private"}, "--score-noise nan"),
        ({"folds": 2, "score_noise": 0.0, "data_is": "private"}, "--score-noise 0"),
        ({"points": 1}, "--points 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    assert any(said in fault for fault in faults_of("clip_norm=0.1..3", **options))


def test_too_many_combinations_are_refused():
    (fault,) = faults_of("clip_norm=0.1..3", "learning_rate=0.1..1", "rounds=1..99", points=30)
    assert "combinations" in fault


def test_a_loss_without_an_accuracy_cannot_be_ranked():
    (fault,) = faults_of("loss=mean_squared_error")
    assert "has no accuracy" in fault


def test_the_noise_and_its_target_replace_each_other():
    plan = search("target_epsilon=2,4").plan_of({"privacy.target_epsilon": 2.0})
    assert plan.privacy.noise_multiplier is None and plan.privacy.target_epsilon == 2
    (fault,) = faults_of("target_epsilon=2,4", "noise_multiplier=1,2")
    assert "vary one" in fault


def test_folds_keep_the_sampling_probability():
    assert fold_sizes(10, 3) == (4, 3, 3)
    for folds in (2, 4, 5, 8):
        trainings = search("clip_norm=1,2", folds=folds).trainings(PLAN)
        assert len(trainings) == folds
        for plan in trainings:
            assert plan.clients.population == 40 - 40 // folds
            assert plan.clients.sampling_probability == pytest.approx(0.2, abs=0.5 / 20)
            assert 1 <= plan.privacy.smallest_cohort <= plan.clients.clients_per_round
            assert plan.privacy.noise_multiplier == 1.0
    left = plan_without(PLAN, held_out=20)
    assert (left.clients.clients_per_round, left.privacy.smallest_cohort) == (4, 2)
