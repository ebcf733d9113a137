"""Plans, models and folders for the exporter's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.registry import build_model
from tf_dpfl.export.runners import Runner, interpreter_runner
from tf_dpfl.privacy.mechanism import GaussianRounds
from tf_dpfl.protocol.interpreter import CHOICE_VARIABLE, PACKAGES
from tf_dpfl.protocol.plan import Plan, plan_from_dict
from tf_dpfl.protocol.plan_files import plan_to_toml

layers = tf.keras.layers
IMAGE = (12, 11, 3)
SERIES = (15, 3)


def plan_of(
    *,
    optimizer: str = "sgd",
    batch_size: int = 8,
    rounds: int = 3,
    local_training: Mapping[str, Any] | None = None,
    **privacy: Any,
) -> Plan:
    noise: dict[str, Any] = {} if "target_epsilon" in privacy else {"noise_multiplier": 1.5}
    return plan_from_dict(
        {
            "version": 1,
            "task": {"model": "mlp"},
            "data": {"source": "digits"},
            "clients": {
                "population": 50,
                "clients_per_round": 10,
                "examples_per_client": 20,
                "sampling": "poisson",
            },
            "local_training": {
                "epochs": 1,
                "batch_size": batch_size,
                "learning_rate": 0.1,
                "optimizer": optimizer,
                **(local_training or {}),
            },
            "privacy": {
                "clip_norm": 0.5,
                "delta": 1e-3,
                "smallest_cohort": 5,
                **noise,
                **privacy,
            },
            "server": {"rounds": rounds},
        }
    )


def on_each_interpreter(content: bytes, model: tf.keras.Model, plan: Plan) -> list[Runner]:
    """`content` in the interpreter of every package that carries one."""
    devices = []
    with pytest.MonkeyPatch.context() as patch:
        for package in PACKAGES:
            patch.setenv(CHOICE_VARIABLE, package)
            devices.append(interpreter_runner(content, model, plan))
    return devices


def _stack(shape: tuple[int, ...], *parts: Any) -> tf.keras.Model:
    return tf.keras.Sequential([layers.InputLayer(shape), *parts, layers.Dense(4, name="logits")])


def _functional() -> tf.keras.Model:
    image = tf.keras.Input(IMAGE)
    left = layers.Conv2D(4, 3, padding="same")(image)
    right = layers.Conv2D(4, 3, padding="same", use_bias=False)(image)
    both = layers.Add()([left, right])
    product = layers.Multiply()([left, both])
    joined = layers.Concatenate()(
        [both, product, layers.Maximum()([left, right]), layers.Subtract()([left, right])]
    )
    return tf.keras.Model(image, layers.Dense(4)(layers.GlobalMaxPooling2D()(joined)))


def activation(name: str | Callable[[Any], Any]) -> tf.keras.Model:
    return _stack((9,), layers.Dense(6, name, name="mid"))


MODELS: dict[str, Callable[[], tf.keras.Model]] = {
    "mlp": lambda: build_model("mlp", input_shape=(28, 28, 1), classes=10),
    "cnn": lambda: build_model("cnn", input_shape=(28, 28, 1), classes=10),
    "linear": lambda: build_model("linear", input_shape=(8, 8, 1), classes=10),
    "strides": lambda: _stack(
        IMAGE,
        layers.Conv2D(5, 3, 2, "same", activation="relu"),
        layers.Conv2D(5, (2, 3), (1, 2), "valid", activation="relu"),
        layers.Flatten(),
    ),
    "dilation": lambda: _stack(
        IMAGE,
        layers.Conv2D(5, 3, 1, "same", dilation_rate=2),
        layers.Conv2D(4, 2, 1, "valid", dilation_rate=(1, 3), activation="tanh"),
        layers.Conv2D(3, 2),
        layers.Flatten(),
    ),
    "conv1d": lambda: _stack(
        SERIES,
        layers.Conv1D(5, 3, 2, "same"),
        layers.Conv1D(4, 3, 1, "causal", dilation_rate=2),
        layers.MaxPooling1D(2, 1),
        layers.Conv1D(4, 2),
        layers.AveragePooling1D(2, 1),
        layers.GlobalAveragePooling1D(),
    ),
    "pooling": lambda: _stack(
        IMAGE,
        layers.Conv2D(5, 3),
        layers.MaxPooling2D(3, 2, "same"),
        layers.AveragePooling2D(2, 1, "same"),
        layers.AveragePooling2D(2),
        layers.Conv2D(4, 1, activation="relu"),
        layers.GlobalAveragePooling2D(),
    ),
    "separable": lambda: _stack(
        IMAGE,
        layers.Conv2D(3, 1),
        layers.SeparableConv2D(5, 3, 2, activation="relu"),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        layers.DepthwiseConv2D(2, padding="same", dilation_rate=2),
        layers.Flatten(),
    ),
    "shapes": lambda: _stack(
        IMAGE,
        layers.Rescaling(0.5, 0.1),
        layers.Conv2D(3, 1),
        layers.ZeroPadding2D(((1, 2), (0, 3))),
        layers.Cropping2D(1),
        layers.Permute((2, 3, 1)),
        layers.Reshape((12, 39)),
        layers.Dense(3, "relu"),
        layers.Flatten(),
    ),
    "functional": _functional,
    "nested": lambda: _stack(
        IMAGE,
        tf.keras.Sequential([layers.Conv2D(3, 3, name="inner"), layers.ReLU(6.0)], name="block"),
        layers.Flatten(),
    ),
    "leaky": lambda: _stack((9,), layers.Dense(6), layers.LeakyReLU(), layers.PReLU()),
    "elu": lambda: _stack((9,), layers.Dense(6), layers.ELU(0.5), layers.Softmax()),
}


def build(name: str) -> tf.keras.Model:
    tf.keras.utils.set_random_seed(3)
    return MODELS[name]()


def batch(rng: np.random.Generator, model: tf.keras.Model, size: int) -> tuple[Any, Any]:
    x = rng.normal(size=(size, *model.input_shape[1:])).astype(np.float32)
    return x, rng.integers(0, model.output_shape[-1], size).astype(np.int32)


PRIOR = GaussianRounds(noise_multiplier=1.5, sampling="poisson", sampling_probability=0.2, rounds=7)


def write_run(run: Path, model: tf.keras.Model, plan: Plan) -> Path:
    """The files of a finished simulation that the exporter reads."""
    run.mkdir()
    (run / "plan.toml").write_text(plan_to_toml(plan))
    model.save(run / "model.keras", save_format="keras")
    card = {"version": 1, "spending": [PRIOR.to_json()], "central": {"epsilon": 1.0}}
    (run / "privacy.json").write_text(json.dumps(card))
    return run
