"""Rounds on several workers: the same result, whoever of them dies, and when.

The workers are real processes on loopback, killed with kill -9.
"""

import contextlib
import json
import os
import queue
import random
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation import runtime as runtime_module
from tf_dpfl.simulation import workers as workers_module
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.simulate import simulate
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


@pytest.fixture(scope="module")
def data():
    return load_federated_data(plan_of())


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


@pytest.fixture
def two():
    with contextlib.closing(Workers(2)) as workers:
        yield workers


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


def test_several_workers_give_the_weights_of_one(data, two):
    alone, _ = weights_after(data, plan_of())
    spread, notices = weights_after(data, plan_of(), workers=two.addresses)
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)
    assert notices == []


def kills_in_rounds(workers, seed, victims):
    """A hook that kills a worker at a random moment of each round, and starts it later."""
    moments, kills = random.Random(seed), []

    def between(number):
        for kill in kills:
            kill.join()  # a round may be over before: one worker is dead at a time
        for index in range(len(workers.started)):
            if workers.is_dead(index):
                workers.start(index)
        victim = victims[number % len(victims)]
        kills.append(threading.Timer(moments.uniform(0.0, 0.3), workers.kill, [victim]))
        kills[-1].start()

    return between


def killed_and_compared(data, count, seed, rounds, victims):
    plan = plan_of(epochs=200)  # a round of some tenths of a second, so that it dies in the middle
    with contextlib.closing(Workers(count)) as workers:
        undisturbed, _ = weights_after(data, plan, workers=workers.addresses, rounds=rounds)
        killed, notices = weights_after(
            data,
            plan,
            workers=workers.addresses,
            rounds=rounds,
            between=kills_in_rounds(workers, seed, victims),
        )
    # The noise of a recomputed part must be that of the first try: fresh noise
    # would differ by about 0.02 in every weight.
    np.testing.assert_allclose(killed, undisturbed, rtol=0, atol=1e-6)
    assert {notice["worker"] for notice in notices} <= set(workers.addresses)
    return notices


def test_a_worker_killed_in_the_middle_of_a_round_changes_nothing(data):
    notices = killed_and_compared(data, count=2, seed=1, rounds=2, victims=[0, 1])
    assert any(notice["event"] == "worker lost" for notice in notices)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random_moments_change_nothing(data, seed):
    killed_and_compared(data, count=3, seed=seed, rounds=8, victims=[2, 0, 1])


def test_a_missing_worker_is_named_at_the_start(data, two, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIND_TIMEOUT_S", 1.0)
    two.kill(1)
    alone, _ = weights_after(data, plan_of())
    spread, notices = weights_after(data, plan_of(), workers=two.addresses)
    assert notices == [{"event": "worker lost", "worker": two.addresses[1]}]
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)


def test_no_worker_at_the_start_is_an_error_that_names_all(two, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIND_TIMEOUT_S", 0.5)
    two.kill(0)
    two.kill(1)
    with pytest.raises(StateError) as error, tff_runtime(workers=two.addresses):
        pass
    assert all(address in str(error.value) for address in two.addresses)
    assert "\n" not in str(error.value)


def test_a_run_whose_workers_are_all_gone_goes_on_later(data, tmp_path, two, monkeypatch):
    """One clear line; each round charged once; the result of a run that never stopped."""
    monkeypatch.setattr(runtime_module, "_PATIENCE_S", 1.0)
    plan, model = plan_of(), small_mlp()
    whole = simulate(plan, tmp_path / "whole", model=model, data=data, seed=7)

    def kill_all(event):
        if event["event"] == "round" and event["round"] == 2:
            two.kill(0)
            two.kill(1)

    folder = tmp_path / "run"
    options = {"model": model, "data": data, "seed": 7, "workers": two.addresses}
    with pytest.raises(StateError, match="no worker is left") as error:
        simulate(plan, folder, on_event=kill_all, **options)
    assert "\n" not in str(error.value) and all(a in str(error.value) for a in two.addresses)
    two.start(0)  # the other one stays away
    events = []
    resumed = simulate(plan, folder, on_event=events.append, **options)
    assert [e["worker"] for e in events if e["event"] == "worker lost"] == [two.addresses[1]]
    charged = (folder / "ledger.jsonl").read_text()
    assert [json.loads(line)["round"] for line in charged.splitlines()] == [1, 2, 3]
    for new, old in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-5)


def test_the_local_worker_is_started_again_when_it_dies_but_not_for_ever(data, monkeypatch):
    processes = []

    def start(*args, **options):
        processes.append(start_worker(*args, **options))
        return processes[-1]

    monkeypatch.setattr(workers_module, "start_worker", start)
    undisturbed, _ = weights_after(data, plan_of())
    processes.clear()
    killed, _ = weights_after(data, plan_of(), between=lambda number: processes[-1].process.kill())
    np.testing.assert_allclose(killed, undisturbed, rtol=0, atol=1e-6)
    assert len(processes) == 4
    with pytest.raises(StateError, match="status -9 for the 4th time"):
        weights_after(
            data, plan_of(), rounds=5, between=lambda number: processes[-1].process.kill()
        )


def meetings(folder, clients, runtime_options):
    """How many of `clients` saw all of them computing at the same time."""

    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def meet(index):
        mine = tf.strings.join([str(folder), "/", tf.strings.as_string(index)])
        with tf.control_dependencies([tf.io.write_file(mine, "here")]):
            looks = tf.constant(0)

        def others():
            return tf.size(tf.io.matching_files(f"{folder}/*"))

        # Bounded: alone it gives up after some seconds.
        looked, _ = tf.while_loop(
            lambda looks, seen: tf.logical_and(looks < 4_000, seen < clients),
            lambda looks, seen: (looks + 1, others()),
            (looks, tf.constant(0)),
            parallel_iterations=1,
        )
        return tf.cast(looked < 4_000, tf.int32)

    @tff.federated_computation(tff.FederatedType(tff.TensorType(np.int32), tff.CLIENTS))
    def all_meet(indices):
        return tff.federated_sum(tff.federated_map(meet, indices))

    with tff_runtime(**runtime_options):
        return all_meet(list(range(clients)))


def test_workers_compute_at_the_same_time(tmp_path, two):
    assert meetings(tmp_path, 2, {"workers": two.addresses}) == 2


@pytest.mark.parametrize(("calls", "met"), [(2, 2), (1, 1)])
def test_a_worker_computes_as_many_shards_at_a_time_as_it_was_told(tmp_path, calls, met):
    """With one at a time the first gives up, and only the second one sees both files."""
    assert meetings(tmp_path, 2, {"concurrent_calls": calls}) == met


def test_the_local_worker_reads_memory_that_was_handed_to_it():
    """Also a second one, after the first has died."""
    descriptor = os.memfd_create("for the worker", os.MFD_CLOEXEC)
    os.write(descriptor, b"examples")

    @tff.tensorflow.computation
    def read():
        return tf.io.read_file(f"/proc/self/fd/{descriptor}")

    try:
        with tff_runtime(inherited=[descriptor]):
            assert read() == b"examples"
            for child in psutil.Process().children(recursive=True):
                if "worker_binary" in child.name():
                    child.kill()
            assert read() == b"examples"
    finally:
        os.close(descriptor)


def test_a_worker_keeps_nothing_of_earlier_rounds_and_a_round_takes_four_messages(
    data, monkeypatch
):
    """By TFF's default it would keep twenty values, among them six rounds' users."""
    made, gone, computations, computed = [], [], [], []

    class Recording(workers_module._Stub):
        def create_value(self, request):
            answer = super().create_value(request)
            kind = request.value.WhichOneof("value")
            (computations if kind == "computation" else made).append(answer.value_ref.id)
            return answer

        def create_call(self, request):
            answer = super().create_call(request)
            made.append(answer.value_ref.id)
            return answer

        def dispose(self, request):
            gone.append([ref.id for ref in request.value_ref])
            return super().dispose(request)

        def compute(self, request):
            computed.append(request.value_ref.id)
            return super().compute(request)

    monkeypatch.setattr(workers_module, "_Stub", Recording)
    kept, messages = [], []

    def between(number):
        kept.append(set(made) - {ref for refs in gone for ref in refs})
        messages.append([len(kind) for kind in (computations, made, computed, gone)])

    weights_after(data, plan_of(), between=between)
    assert kept == [set(), set(), set()]
    # No computation again; an argument and a call made, one value computed, both let go.
    np.testing.assert_array_equal(np.diff(messages, axis=0), [[0, 2, 1, 1]] * 2)


def test_work_goes_back_to_a_worker_that_is_found_again():
    class Fake:
        def __init__(self, name):
            self.name, self.ready = name, True

        def is_ready(self):
            return self.ready

    from tf_dpfl.simulation.spread import _Crew

    a, b, c = (Fake(name) for name in "abc")
    crew = _Crew([a, b, c], patience_s=0.0, notices=queue.SimpleQueue())
    assert [crew.worker_for(part) for part in range(3)] == [a, b, c]
    b.ready = False
    assert crew.worker_for(1) in (a, c)
    a.ready = False
    assert crew.worker_for(0) is c and crew.worker_for(1) is c
    assert crew.is_at_home(1)  # its own worker is still away
    b.ready = True
    assert not crew.is_at_home(1)
    assert crew.worker_for(1) is b
    a.ready = b.ready = c.ready = False
    began = time.monotonic()
    with pytest.raises(StateError, match="a, b, c"):
        crew.worker_for(2)
    assert time.monotonic() - began < 30
