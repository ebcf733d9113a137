"""The step that is noised: how far one example moves it, and how much noise that takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import LocalTraining, plan_from_dict
from tf_dpfl.protocol.private_step import noise_stddev_of_step, noised_step, sensitivity_of_step
from tf_dpfl.protocol.step_scale import rate_before_noise, scale_of_gradients

B, RATE, CLIP_NORM = 8, 0.1, 0.5
OF_THE_STEP = RATE / B  # plain SGD: what comes off the weights
OF_THE_GRADIENT = 1 / B
SCALES = {
    "sgd": ({}, OF_THE_STEP),
    "proximal": ({"proximal": 0.1}, OF_THE_GRADIENT),
    "momentum": ({"optimizer": "momentum"}, OF_THE_GRADIENT),
    "adam": ({"optimizer": "adam"}, OF_THE_GRADIENT),
}
ANY_SCALE = [0.0, 1e-30, 0.01, 1.0, 1e6, 1e30, math.inf, -math.inf, -1.0, math.nan]


def settings(**changes):
    return LocalTraining(1, B, RATE, **changes)


@pytest.mark.parametrize("name", SCALES)
def test_the_sensitivity_is_the_clip_norm_at_the_scale_of_the_step(name):
    changes, scale = SCALES[name]
    training = settings(**changes)
    assert rate_before_noise(training) == (name == "sgd")
    assert scale_of_gradients(training) == pytest.approx(scale, rel=1e-12)
    sensitivity = sensitivity_of_step(training, clip_norm=CLIP_NORM)
    assert sensitivity == pytest.approx(scale * CLIP_NORM, rel=1e-7)
    assert sensitivity == np.float32(sensitivity)  # what the file is given, to the bit
    for z in (0.0, 1.5):
        stddev = noise_stddev_of_step(training, clip_norm=CLIP_NORM, noise_multiplier=z)
        assert stddev == z * sensitivity


@pytest.mark.parametrize("scale", ANY_SCALE)
@pytest.mark.parametrize("norm", [0.0, 1e-25, 1e-3, 1.0, 1e12])
def test_one_example_moves_the_step_by_at_most_the_sensitivity(scale, norm):
    draw, sensitivity = np.random.default_rng(0), 1e-3
    gradients = draw.normal(size=(4, 50))
    gradients *= norm / np.linalg.norm(gradients, axis=1, keepdims=True)

    def step(weight):
        return noised_step(
            np.float32(gradients),
            np.float32(weight),
            scale=scale,
            sensitivity=sensitivity,
            noise=np.zeros(50, np.float32),
        )

    moved = np.linalg.norm(step([1, 1, 1, 1]) - step([1, 1, 0, 1]))
    assert moved <= sensitivity
    if norm >= 1e-3 and scale * norm > 2 * sensitivity:
        assert moved > 0.99 * sensitivity


@given(st.integers(0, 2**32 - 1))
def test_a_fitting_sensitivity_gives_dp_sgd_of_the_paper(seed):
    """(sum of g / max(1, ||g|| / C) + noise) * rate / B, Abadi et al. 1607.00133, algorithm 1."""
    draw = np.random.default_rng(seed)
    gradients = np.float32(draw.normal(size=(5, 12)) * draw.exponential(0.3, (5, 1)))
    noise = draw.normal(size=12)
    norms = np.linalg.norm(gradients.astype(np.float64), axis=1, keepdims=True)
    total = (gradients / np.maximum(1, norms / CLIP_NORM)).sum(axis=0)
    got = noised_step(
        gradients,
        np.ones(5, np.float32),
        scale=scale_of_gradients(settings()),
        sensitivity=sensitivity_of_step(settings(), clip_norm=CLIP_NORM),
        noise=np.float32(noise * OF_THE_STEP),
    )
    np.testing.assert_allclose(got, (total + noise) * OF_THE_STEP, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e30])
def test_what_does_not_count_adds_nothing(broken):
    gradients = np.ones((3, 4), np.float32)
    gradients[1, 2] = broken
    given = {"scale": 1.0, "sensitivity": 10.0, "noise": np.full(4, 0.25, np.float32)}
    got = noised_step(gradients, np.float32([1, 1, 0]), **given)
    np.testing.assert_allclose(got, np.full(4, 1.25), rtol=1e-6)
    nobody = noised_step(gradients[:0], np.ones(0, np.float32), **given)
    np.testing.assert_array_equal(nobody, given["noise"])


def with_steps(rate, clip_norm):
    tree = plan_tree()
    tree["local_training"] |= {"learning_rate": rate}
    tree["privacy"] |= {"unit": "example", "clip_norm": clip_norm, "delta": 1e-9}
    return plan_from_dict(tree)


def test_steps_too_small_for_float32_noise_are_refused():
    with pytest.raises(PlanError, match=r"learning_rate=1e-24 and privacy.clip_norm=1e-06.*1e-30"):
        with_steps(1e-24, 1e-6)
    assert with_steps(1e-20, 1e-6).privacy.unit == "example"
