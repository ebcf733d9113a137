"""DP-SGD inside client.tflite: each example clipped, fed noise, the public divisor.

That twenty of its steps are those of a loop over examples, for every layer, is held by
test_layers_trained.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import on_each_interpreter, plan_of
from keras_oracle import flat
from layer_models import LAYERS, L

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.optimizers import LocalOptimizer
from tf_dpfl.client_work.per_example import loop, one_pass
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.runners import Runner
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.interpreter import load_interpreter

BATCH = 4


def example_plan(**local_training: Any) -> Any:
    return plan_of(batch_size=BATCH, local_training=local_training, unit="example", delta=1e-4)


@pytest.mark.parametrize("method", ["one_pass", "loop"])
def test_one_example_moves_the_weights_by_its_clipped_share_alone(method: str) -> None:
    model, plan = LAYERS["conv2d groups"](), example_plan()
    content = build_client_tflite(model, plan, dp_method=method)
    for device in on_each_interpreter(content, model, plan):
        check_shares(device, model, plan)


def check_shares(device: Runner, model: Any, plan: Any) -> None:
    start = flat(model.trainable_variables).astype(np.float32)
    nothing = np.zeros_like(start)
    batch = RandomExamples(model, plan.local_training).batch(np.random.default_rng(1), BATCH)

    def moved(weight: list[float], rate: float = 1.0) -> np.ndarray:
        device.set_weights(np.zeros_like(start) + start)
        device.train_dp(batch, np.float32(weight), rate, 1e-3 / BATCH, nothing)
        return (start - device.get_weights()).astype(np.float64) * BATCH

    whole, without = moved([1, 1, 1, 1]), moved([1, 1, 0, 1])
    rounding = 4e-7 * np.linalg.norm(start) * BATCH
    assert 0.5e-3 < np.linalg.norm(whole - without) <= 1e-3 + rounding
    for rate in (0.0, 1e-6, 1e6, np.inf, -np.inf, -1.0, np.nan):
        shares = [moved(weight, rate) for weight in ([1, 1, 1, 1], [1, 1, 0, 1])]
        assert np.linalg.norm(shares[0] - shares[1]) <= 1e-3 + rounding
        assert rate > 0 or not shares[0].any()
    assert not moved([0, 0, 0, 0]).any()
    batch["x"][2] = np.inf
    np.testing.assert_array_equal(moved([1, 1, 1, 1]), without)


def test_no_signature_returns_anything_of_a_single_example() -> None:
    content = build_client_tflite(LAYERS["embedding"](), example_plan())
    interpreter = load_interpreter(content)
    outputs = {name: entry["outputs"] for name, entry in interpreter.get_signature_list().items()}
    assert set(outputs) == set(signatures.of_plan(example_plan()))
    assert outputs[signatures.TRAIN_DP] == ["done"]
    details = interpreter.get_signature_runner(signatures.TRAIN_DP).get_output_details()
    assert details["done"]["shape"].tolist() == []
    loss = interpreter.get_signature_runner(signatures.TRAIN).get_output_details()["loss"]
    assert loss["shape"].tolist() == []


def test_user_level_files_have_no_such_signature() -> None:
    content = build_client_tflite(LAYERS["embedding"](), plan_of(batch_size=BATCH))
    assert signatures.TRAIN_DP not in load_interpreter(content).get_signature_list()


@pytest.mark.parametrize("name", ["softmax layer", "gaussian noise", "two inputs", "tied"])
def test_verification_covers_per_example_clipping(name: str) -> None:
    model, plan = LAYERS[name](), example_plan(optimizer="adam")
    found = verify_client_tflite(build_client_tflite(model, plan), model, plan)
    assert [check for check in found.checks if "against the loop" in check]


def test_a_model_without_a_sound_rule_takes_the_loop_and_says_why() -> None:
    local = example_plan().local_training
    x = tf.keras.Input((5,))
    doubled = 2.0 * L.Dense(3, name="first")(x)
    mixed = tf.keras.Model(x, doubled - tf.reduce_mean(doubled, axis=0, keepdims=True))
    method = ClientComputation(mixed, local).choose_dp_method()
    assert method.name == "loop" and "mixes examples" in method.reason
    for activation in ("swish", "gelu"):
        known = tf.keras.Sequential([L.InputLayer((5,)), L.Dense(4, activation), L.Dense(3)])
        assert ClientComputation(known, local).choose_dp_method().name == "one_pass"


@pytest.mark.parametrize("wrong", ["no clipping", "norms of one variable alone", "a wrong use"])
def test_a_wrong_per_example_rule_stops_the_export(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "no clipping":
        factors = one_pass.contribution_factors
        monkeypatch.setattr(
            one_pass,
            "contribution_factors",
            lambda norms, *rest, **keys: factors(norms * 0.0, *rest, **keys),
        )
    elif wrong == "a wrong use":
        use_at = one_pass.use_at

        def doubled(site: Any, grad: Any) -> Any:
            return use_at(site, 2.0 * grad if site.op.type == "MatMul" else grad)

        monkeypatch.setattr(one_pass, "use_at", doubled)
    else:
        add = tf.add_n
        monkeypatch.setattr(
            one_pass.tf,
            "add_n",
            lambda parts: parts[0] if parts[0].shape == [BATCH] else add(parts),
        )
    model = tf.keras.Sequential([L.InputLayer((5,)), L.Dense(4, "tanh", name="first"), L.Dense(3)])
    content = build_client_tflite(model, example_plan())
    monkeypatch.undo()
    with pytest.raises(ExportError, match=r"per-example clipping against the loop.*layer 'first'"):
        verify_client_tflite(content, model, example_plan())


def no_clipping(norms: Any, losses: Any, weight: Any, *, scale: Any, sensitivity: Any) -> Any:
    return CORRECT(norms, losses, weight, scale=scale, sensitivity=1e9 * sensitivity)


def bound_off_by_the_batch(
    norms: Any, losses: Any, weight: Any, *, scale: Any, sensitivity: Any
) -> Any:
    return CORRECT(norms, losses, weight, scale=scale, sensitivity=BATCH * sensitivity)


def rate_left_out(norms: Any, losses: Any, weight: Any, *, scale: Any, sensitivity: Any) -> Any:
    return CORRECT(norms, losses, weight, scale=1.0 / BATCH, sensitivity=sensitivity)


def always_of_full_length(
    norms: Any, losses: Any, weight: Any, *, scale: Any, sensitivity: Any
) -> Any:
    return CORRECT(norms, losses, weight, scale=1e9 * scale, sensitivity=sensitivity)


def clipped_before_the_rate(
    norms: Any, losses: Any, weight: Any, *, scale: Any, sensitivity: Any
) -> Any:
    factor, counts = CORRECT(norms, losses, weight, scale=1.0, sensitivity=sensitivity)
    return factor * scale, counts


CORRECT = one_pass.contribution_factors
WRONG_FACTORS = [
    no_clipping,
    bound_off_by_the_batch,
    rate_left_out,
    always_of_full_length,
    clipped_before_the_rate,
]


@pytest.mark.parametrize("wrong", WRONG_FACTORS)
def test_a_wrong_bound_stops_the_export_even_where_the_loop_shares_it(
    monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    for method in (one_pass, loop):
        monkeypatch.setattr(method, "contribution_factors", wrong)
    refuse_a_file(example_plan())


def scaled_again(self: Any, step: Any, rate: Any) -> None:
    APPLY(self, [part * rate for part in step], rate)


def over_the_batch_again(self: Any, step: Any, rate: Any) -> None:
    APPLY(self, [part * (1.0 / BATCH) for part in step], rate)


APPLY = LocalOptimizer.apply_noised


@pytest.mark.parametrize(
    ("wrong", "optimizer"), [(scaled_again, "sgd"), (over_the_batch_again, "momentum")]
)
def test_a_step_that_is_scaled_after_its_noise_stops_the_export(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, optimizer: str
) -> None:
    monkeypatch.setattr(LocalOptimizer, "apply_noised", wrong)
    refuse_a_file(example_plan(optimizer=optimizer))


@pytest.mark.parametrize("times", [0.0, 2.0])
def test_noise_that_is_left_out_or_added_twice_stops_the_export(
    monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    train = ClientComputation.train_dp_batch

    def wrong(self: Any, *step: Any) -> Any:
        batch, weight, rate, sensitivity, noise, *random = step
        noise = [times * share for share in noise]
        return train(self, batch, weight, rate, sensitivity, noise, *random)

    monkeypatch.setattr(ClientComputation, "train_dp_batch", wrong)
    refuse_a_file(example_plan())


def refuse_a_file(plan: Any) -> None:
    """With a fault that device and TensorFlow share: NumPy alone tells."""
    model = tf.keras.Sequential([L.InputLayer((5,)), L.Dense(4, "tanh", name="first"), L.Dense(3)])
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match="DP-SGD against a GradientTape and NumPy: .*'first'"):
        verify_client_tflite(content, model, plan)
