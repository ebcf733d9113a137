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
from tf_dpfl.client_work.per_example.groups import LookupGroup

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


@pytest.mark.parametrize(
    ("lookups", "table"),
    [(9, 7), (9, 9 * 256), (9, 9 * 256 + 1), (127, 3), (128, 3), (200, 1)],
)
def test_ids_that_repeat_count_as_often_as_they_do(lookups, table):
    """By counting them and, of tables or examples that are large, by sorting them."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, table, (4, lookups)).astype(np.int32)
    ids[1] = table - 1  # one id alone, the last one
    ids[2, ::2] = ids[2, 0]
    column = draw.normal(size=(4, 1, 5)).astype(np.float32)
    positions = np.arange(1, table * 5 + 1).reshape(table, 5)

    @tf.function(autograph=False)
    def squared_norms(ids, columns):
        return LookupGroup(ids, columns, positions, None).squared_norms()

    got = squared_norms(tf.constant(ids), tf.constant(column))
    for example in range(4):
        gradient = np.zeros((table, 5))
        np.add.at(gradient, ids[example], column[example, 0].astype(np.float64))
        np.testing.assert_allclose(got[example], np.sum(gradient**2), rtol=1e-6)


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
            scale=tf.constant(1.0),
            sensitivity=tf.constant(0.5),
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
