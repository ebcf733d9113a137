"""Rounds on several workers: the same result, whoever of them dies in a round, and when."""

import contextlib
import os
import random
import threading

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from worker_rounds import Workers, plan_of, weights_after

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.simulation import workers as workers_module
from tf_dpfl.simulation.runtime import tff_runtime


@pytest.fixture(scope="module")
def data():
    return load_federated_data(plan_of())


@pytest.fixture
def two():
    with contextlib.closing(Workers(2)) as workers:
        yield workers


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


def meetings(folder, clients, runtime_options, *, looks_at_most=100_000):
    """How many of `clients` saw all of them computing at the same time.

    A client gives up after so many looks at the folder.
    """

    @tff.tensorflow.computation(tff.TensorType(np.int32))
    def meet(index):
        mine = tf.strings.join([str(folder), "/", tf.strings.as_string(index)])
        with tf.control_dependencies([tf.io.write_file(mine, "here")]):
            looks = tf.constant(0)

        def others():
            return tf.size(tf.io.matching_files(f"{folder}/*"))

        looked, _ = tf.while_loop(
            lambda looks, seen: tf.logical_and(looks < looks_at_most, seen < clients),
            lambda looks, seen: (looks + 1, others()),
            (looks, tf.constant(0)),
            parallel_iterations=1,
        )
        return tf.cast(looked < looks_at_most, tf.int32)

    @tff.federated_computation(tff.FederatedType(tff.TensorType(np.int32), tff.CLIENTS))
    def all_meet(indices):
        return tff.federated_sum(tff.federated_map(meet, indices))

    with tff_runtime(**runtime_options):
        return all_meet(list(range(clients)))


def test_workers_compute_at_the_same_time(tmp_path, two):
    assert meetings(tmp_path, 2, {"workers": two.addresses}) == 2


def test_a_worker_computes_as_many_shards_at_a_time_as_it_was_told(tmp_path):
    assert meetings(tmp_path, 2, {"concurrent_calls": 2}) == 2


def test_a_worker_told_so_computes_one_shard_at_a_time(tmp_path):
    """The first gives up, and only the second one sees both files."""
    assert meetings(tmp_path, 2, {"concurrent_calls": 1}, looks_at_most=4_000) == 1


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
