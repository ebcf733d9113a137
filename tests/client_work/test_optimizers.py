"""Local optimizers held to Keras' own and to the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.optimizers import LocalOptimizer
from tf_dpfl.protocol.plan import LocalTraining

START = (np.float32([[1.0, -2.0], [0.5, 3.0]]), np.float32([0.1, -0.2]))
STEPS = 12


def settings(**changes) -> LocalTraining:
    return LocalTraining(epochs=1, batch_size=1, learning_rate=1.0, **changes)


def gradients() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(8)
    return [[rng.normal(size=w.shape).astype(np.float32) for w in START] for _ in range(STEPS)]


class Training:
    """A local optimizer with its variables, stepped in a graph."""

    def __init__(self, **changes) -> None:
        self.variables = [tf.Variable(w) for w in START]
        self.optimizer = LocalOptimizer(self.variables, settings(**changes))
        tf.function(self.optimizer.reset, autograph=False)()
        self._apply = tf.function(
            lambda g: self.optimizer.apply(g, tf.constant(0.05)), autograph=False
        )

    def run(self, steps) -> list[np.ndarray]:
        for step in steps:
            self._apply([tf.constant(g) for g in step])
        return [v.numpy() for v in self.variables]


KERAS = {
    "sgd": lambda: tf.keras.optimizers.legacy.SGD(0.05),
    "momentum": lambda: tf.keras.optimizers.legacy.SGD(0.05, momentum=0.9),
    "adam": lambda: tf.keras.optimizers.Adam(0.05, 0.8, 0.95, 1e-4),
}
CHANGES = {"sgd": {}, "momentum": {}, "adam": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-4}}


@pytest.mark.parametrize("name", KERAS)
def test_steps_are_those_of_keras(name: str) -> None:
    ours = Training(optimizer=name, **CHANGES[name]).run(gradients())
    variables, optimizer = [tf.Variable(w) for w in START], KERAS[name]()
    for step in gradients():
        optimizer.apply_gradients(zip([tf.constant(g) for g in step], variables))
    for mine, keras in zip(ours, variables):
        np.testing.assert_allclose(mine, keras.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KERAS)
def test_the_proximal_term_pulls_towards_the_start(name: str) -> None:
    mu = 0.7
    training = Training(optimizer=name, proximal=mu, **CHANGES[name])
    free = Training(optimizer=name, **CHANGES[name])
    for step in gradients():
        pulled = [g + mu * (v.numpy() - start) for g, v, start in zip(step, free.variables, START)]
        free.run([pulled])
        training.run([step])
    for mine, theirs in zip(training.variables, free.variables):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_the_proximal_start_moves_with_a_reset() -> None:
    training = Training(proximal=10.0)
    moved = training.run(gradients())
    training.optimizer.reset()
    still = training.run([[np.zeros_like(w) for w in START]])
    for before, after in zip(moved, still):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_kept_state_goes_on_where_it_stopped(name: str) -> None:
    steps = gradients()
    whole = Training(optimizer=name).run(steps)
    first, second = Training(optimizer=name), Training(optimizer=name)
    weights = first.run(steps[:5])
    for variable, value in zip(second.variables, weights):
        variable.assign(value)
    state = first.optimizer.get_state()
    assert state.shape == [first.optimizer.state_size]
    second.optimizer.set_state(state)
    for mine, theirs in zip(second.run(steps[5:]), whole):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_reset_forgets_everything(name: str) -> None:
    used, fresh = Training(optimizer=name), Training(optimizer=name)
    used.run(gradients())
    used.optimizer.reset()
    for variable, value in zip(used.variables, START):
        variable.assign(value)
    for mine, theirs in zip(used.run(gradients()), fresh.run(gradients())):
        np.testing.assert_array_equal(mine, theirs)
