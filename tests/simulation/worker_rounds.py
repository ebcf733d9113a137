"""Rounds on worker processes on loopback, which a test may kill with kill -9."""

import contextlib
import time
from dataclasses import replace

import numpy as np
import tensorflow as tf
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.worker_process import start_worker

USERS = np.arange(24)
SEED = np.array([3, 4], np.int64)


def plan_of(*, epochs=2, rounds=3):
    """24 users in eight shards, with noise a thousand times what may differ."""
    plan = with_server(digits_plan(noise_multiplier=1.0), rounds=rounds)
    return replace(
        plan,
        clients=replace(plan.clients, clients_per_round=24),
        local_training=replace(plan.local_training, epochs=epochs),
    )


class Workers:
    """Worker processes on fixed ports."""

    def __init__(self, count):
        self.started = [start_worker(concurrent_calls=1) for _ in range(count)]
        self.addresses = [f"localhost:{worker.port}" for worker in self.started]

    def is_dead(self, index):
        return self.started[index].process.poll() is not None

    def kill(self, index):
        self.started[index].process.kill()
        self.started[index].process.wait()

    def start(self, index):
        for _ in range(100):  # what was killed lets its port go a little later
            with contextlib.suppress(StateError):
                self.started[index] = start_worker(self.started[index].port, concurrent_calls=1)
                return
            time.sleep(0.05)
        raise StateError(f"port {self.started[index].port} stays in use")

    def close(self):
        for worker in self.started:
            worker.stop()


def weights_after(data, plan, *, workers=(), rounds=3, between=lambda number: None):
    """The weights after some rounds from one start, as one vector; and what was noticed."""
    tf.keras.utils.set_random_seed(5)
    model = small_mlp()
    notices = []
    with tff_runtime(workers=workers) as runtime:
        process = build_learning_process(plan, model, data, noise_seed=SEED)
        state = process.initialize()
        process.next(state, make_shards(data, USERS[:0], plan))  # compiles
        for number in range(rounds):
            between(number)
            state = process.next(state, make_shards(data, USERS, plan)).state
        notices += runtime.notices()
    weights = process.get_model_weights(state).trainable
    return np.concatenate([np.ravel(w) for w in weights]), notices
