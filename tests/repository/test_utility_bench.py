"""`./run bench utility`: the mean of the weights that is judged, and what is said of privacy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_dpfl

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DECAY, STEPS = 0.8, 6


class Recorded:
    """A `DPModel` that keeps the weights after each step."""

    def __init__(self, private):
        self.private, self.after = private, []
        self.compile = private.compile

    def fit(self, *args, callbacks, **kwargs):
        def keep(batch, logs):  # Keras' signature
            self.after.append(recorder.model.get_weights())

        recorder = tf.keras.callbacks.LambdaCallback(on_train_batch_end=keep)
        self.private.fit(*args, callbacks=[*callbacks, recorder], **kwargs)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    places = [str(BENCHMARKS), str(BENCHMARKS / "utility_parts")]
    monkeypatch.setattr(sys, "path", [*places, *sys.path])


@pytest.fixture
def trained():
    """A model after `STEPS` steps, and the mean that the benchmark would judge."""
    from running_mean import fit_to_mean

    model = tf.keras.Sequential([tf.keras.Input([3]), tf.keras.layers.Dense(2)])
    private = tf_dpfl.DPModel(model, clip_norm=1.0, delta=1e-3, noise_multiplier=1.0)
    random, recorded = np.random.default_rng(0), Recorded(private)
    train = random.normal(size=(40, 3)).astype("float32"), random.integers(0, 2, 40)
    optimizer = tf.keras.optimizers.SGD(0.5)
    mean = fit_to_mean(
        recorded, train, optimizer=optimizer, batch_size=10, steps=STEPS, decay=DECAY
    )
    return recorded, mean


def test_training_gives_the_decaying_mean_of_the_weights(trained):
    recorded, mean = trained
    assert len(recorded.after) == STEPS
    factors = DECAY ** np.arange(STEPS)[::-1]
    for index, array in enumerate(mean):
        stacked = np.stack([weights[index] for weights in recorded.after])
        expected = np.tensordot(factors / factors.sum(), stacked, axes=1)
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(array, stacked[-1])


def test_every_row_is_printed_with_its_privacy(trained, capsys):
    from statements import of_central_training
    from utility import show_with_privacy

    said = of_central_training(trained[0].private.privacy())
    rows = [
        {"epsilon": 3.0, "mean": 0.5, "privacy": said, "card": None},
        {"epsilon": 2.0, "mean": 0.25, "privacy": "another", "card": {"central": {}}},
    ]
    show_with_privacy(rows, by=("epsilon",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epsilon", "mean"]
    assert lines[-2:] == [f"epsilon 3.0: {said}", "epsilon 2.0: another"]
    for term in ("at delta = 0.001", "for one example (add-or-remove-one)", "6 steps of DP-SGD"):
        assert term in said
