"""What verification draws: first whole batches, then few examples, which tell as much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import build, plan_of

from tf_dpfl.client_work.optimizers import LocalOptimizer
from tf_dpfl.export import client, verify
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.draws import Draw, draws
from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol.errors import ExportError


@pytest.fixture
def only_small_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(seed: int, *, kinks: bool) -> Iterator[Draw]:
        return (draw for draw in draws(seed, kinks=kinks) if draw.small or not kinks)

    monkeypatch.setattr(verify, "draws", small)


def test_whole_batches_come_first_and_are_padded_at_the_end() -> None:
    examples = RandomExamples(build("linear"), plan_of().local_training)
    first = next(draws(0, kinks=False))
    assert first.steps(6) == 6
    np.testing.assert_array_equal(
        first.batch(examples, size=4, real=3).weight, np.array([1, 1, 1, 0], np.float32)
    )


def test_later_draws_have_two_real_examples_anywhere_and_others_around_them() -> None:
    examples = RandomExamples(build("linear"), plan_of().local_training)
    small = [draw for draw in draws(0, kinks=True) if draw.small]
    batches = [draw.batch(examples, size=8, real=6) for draw in small for _ in range(20)]
    assert {draw.steps(6) for draw in small} == {2}
    assert all(batch.weight.sum() == 2 for batch in batches)
    assert len({tuple(batch.weight) for batch in batches}) == 15  # 6 choose 2
    for batch in batches:
        x = batch.tensors["x"].reshape(8, -1)
        assert len(np.unique(x, axis=0)) == 8
    assert small[0].batch(examples, size=8, real=1).weight.sum() == 1
    assert small[0].batch(examples, size=8, real=0).weight.sum() == 0


def _check_failing_on(number: int, *, seen: list[Draw]) -> Any:
    def check(draw: Draw) -> list[str]:
        seen.append(draw)
        return [f"fault of draw {len(seen)}"] if len(seen) <= number else []

    return check


@pytest.mark.parametrize("kinks", [False, True])
def test_a_check_fails_when_every_draw_shows_a_fault_and_names_those_of_the_first(
    kinks: bool,
) -> None:
    seen: list[Draw] = []
    chances = 8 if kinks else 3
    verify._run("steps", _check_failing_on(chances - 1, seen=seen), draws(0, kinks=kinks))
    assert [draw.small for draw in seen] == [False] * 3 + [True] * (chances - 3)
    with pytest.raises(ExportError, match=r"steps: fault of draw 1$"):
        verify._run("steps", _check_failing_on(chances, seen=[]), draws(0, kinks=kinks))


def test_only_checks_of_gradients_have_more_than_three_chances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chances: dict[str, int] = {}
    monkeypatch.setattr(
        verify, "_run", lambda name, _, found: chances.update({name: len(list(found))})
    )
    model, plan = build("linear"), plan_of()
    verify_client_tflite(build_client_tflite(model, plan), model, plan)
    values = ("setting and getting weights", "inference with", "clipping and noising")
    assert sum(name.startswith(values) for name in chances) == 4
    for name, number in chances.items():
        assert number == (3 if name.startswith(values) else 8), name


def _relu_off_by_a_permille(op: Any, grad: Any) -> Any:
    return 1.001 * grad * tf.cast(op.outputs[0] > 0.0, tf.float32)


def _relu_of_the_next_example(op: Any, grad: Any) -> Any:
    return grad * tf.cast(tf.roll(op.outputs[0], 1, axis=0) > 0.0, tf.float32)


def _bias_with_a_little_of_the_padding(op: Any, grad: Any) -> Any:
    leaked = grad + 1e-3 * tf.roll(op.outputs[0], 1, axis=0)
    return grad, tf.reduce_sum(leaked, axis=list(range(grad.shape.rank - 1)))


WRONG = {
    "DpflTestDrawsPermille": ("Relu", _relu_off_by_a_permille, "pooling"),
    "DpflTestDrawsNext": ("Relu", _relu_of_the_next_example, "pooling"),
    "DpflTestDrawsPadding": ("BiasAdd", _bias_with_a_little_of_the_padding, "linear"),
}
for _name, (_, _rule, _) in WRONG.items():
    tf.RegisterGradient(_name)(_rule)


@pytest.mark.usefixtures("only_small_draws")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught_by_few_examples_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op_type, _, model_name = WRONG[name]
    monkeypatch.setattr(client, "op_gradients", lambda: {**op_gradients(), op_type: name})
    model, plan = build(model_name), plan_of()
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match=r"off by \S+, allowed is"):
        verify_client_tflite(content, model, plan)


@pytest.mark.usefixtures("only_small_draws")
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_state_that_is_not_reset_is_caught_by_few_examples_alone(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = build("linear"), plan_of(optimizer=optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(LocalOptimizer, "reset", lambda self: None)
        content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match="step"):
        verify_client_tflite(content, model, plan)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_a_right_model_of_millions_of_relus_is_accepted(seed: int) -> None:
    """Whole batches of it straddle a kink in nearly every draw."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    image = tf.keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same")(image)
    for filters, stride in ((16, 1), (16, 1), (32, 2), (32, 1)):
        skip = x if stride == 1 else layers.Conv2D(filters, 1, stride)(x)
        x = layers.Conv2D(filters, 3, stride, padding="same")(x)
        x = layers.ReLU()(layers.GroupNormalization(4)(x))
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.ReLU()(layers.Add()([layers.GroupNormalization(4)(x), skip]))
    model = tf.keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    plan = plan_of(batch_size=32)
    verify_client_tflite(build_client_tflite(model, plan), model, plan, seed=seed)
