"""Clipped gradient sums of many models against independent oracles."""

import numpy as np
import per_example_models as cases
import pytest
import tensorflow as tf

from tf_dpfl.client_work.per_example import (
    NoSoundRuleError,
    choose_method,
    clipped_gradient_sum,
    one_pass,
)

WEIGHT = np.array([1, 1, 0, 1, 1, 1], np.float32)


def relative(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def chosen(model, batch):
    return choose_method(
        cases.losses_of(model),
        cases.specs(batch),
        None,
        variables=model.trainable_variables,
        op_gradients={},
    )


@pytest.mark.parametrize("name", cases.ONE_PASS)
def test_one_pass_is_the_sum_of_clipped_tape_gradients(name):
    model = cases.built(cases.ONE_PASS[name])
    batch = cases.batch_for(model)
    gradients = cases.gradient_of_each(model, batch)
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1)))  # half of them are clipped
    assert chosen(model, batch).name == "one_pass"
    got = cases.clipped_sum(model, batch, WEIGHT, clip_norm, "one_pass")
    assert relative(got, cases.expected_sum(gradients, WEIGHT, clip_norm)) < 3e-5


@pytest.mark.parametrize("name", ["mlp", "group_norm", "embedding", "tied", "lstm"])
def test_loop_is_the_sum_of_clipped_tape_gradients(name):
    model = cases.built(cases.ONE_PASS[name])
    batch = cases.batch_for(model)
    gradients = cases.gradient_of_each(model, batch)
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1)))
    got = cases.clipped_sum(model, batch, WEIGHT, clip_norm, "loop")
    assert relative(got, cases.expected_sum(gradients, WEIGHT, clip_norm)) < 3e-5


@pytest.mark.parametrize("reason", cases.LOOP_ONLY)
def test_model_without_sound_rule_takes_the_loop_with_the_reason(reason):
    model = cases.built(cases.LOOP_ONLY[reason])
    batch = cases.batch_for(model)
    method = chosen(model, batch)
    assert method.name == "loop"
    assert reason in method.reason
    with pytest.raises(NoSoundRuleError, match=reason) as caught:
        cases.clipped_sum(model, batch, WEIGHT, 0.5, "one_pass")
    assert caught.value.op_name.startswith("sequential")
    gradients = cases.gradient_of_each(model, batch)
    got = cases.clipped_sum(model, batch, WEIGHT, 0.5, "loop")
    assert relative(got, cases.expected_sum(gradients, WEIGHT, 0.5)) < 3e-5


@pytest.mark.parametrize("method", ["one_pass", "loop"])
def test_random_values_belong_to_their_example(method):
    model = cases.built(cases.ONE_PASS["mlp"])
    batch = cases.batch_for(model)
    random = np.random.default_rng(5).random((cases.BATCH, 20)).astype(np.float32)

    def losses(batch, random):
        kept = tf.cast(random > 0.5, tf.float32)
        return cases.losses_of(model)({**batch, "x": batch["x"] * kept}, None)

    parts = tf.function(
        lambda: clipped_gradient_sum(
            losses,
            {name: tf.constant(a) for name, a in batch.items()},
            tf.constant(WEIGHT),
            tf.constant(random),
            variables=model.trainable_variables,
            clip_norm=tf.constant(0.5),
            op_gradients={},
            method=method,
        ),
        autograph=False,
    )()
    got = np.concatenate([p.numpy().reshape(-1) for p in parts])
    gradients = cases.gradient_of_each(model, {**batch, "x": batch["x"] * (random > 0.5)})
    assert relative(got, cases.expected_sum(gradients, WEIGHT, 0.5)) < 3e-5


@pytest.mark.parametrize("name", ["lstm", "shared", "tied", "masked_gru"])
def test_keying_by_read_instead_of_variable_would_be_seen(name, monkeypatch):
    """Without joining, cross terms between the uses of one weight are lost."""
    join = one_pass.join
    monkeypatch.setattr(one_pass, "join", lambda uses: [g for use in uses for g in join([use])])
    model = cases.built(cases.ONE_PASS[name])
    batch = cases.batch_for(model)
    gradients = cases.gradient_of_each(model, batch)
    clip_norm = 0.5 * float(np.linalg.norm(gradients, axis=1).min())
    got = cases.clipped_sum(model, batch, WEIGHT, clip_norm, "one_pass")
    assert relative(got, cases.expected_sum(gradients, WEIGHT, clip_norm)) > 3e-3
