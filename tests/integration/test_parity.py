"""What is simulated is what ships: one round in TFF and one through server and devices.

The same initial weights, users, batches and noise must give the same model. The
devices train the exported `client.tflite` in the interpreter and send through
HTTP to a real server process.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mobile_client.trainer import Trainer
from mobile_client.transport import Link, open_client
from models.registry import build_model
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.export.task import export_client
from tf_dpfl.protocol.manifest import CLIENT_FILE
from tf_dpfl.protocol.noise import noise_stddev_of_share
from tf_dpfl.protocol.plan import plan_from_dict
from tf_dpfl.protocol.tensors import vector_from_bytes, vector_to_bytes
from tf_dpfl.simulation.noise import STEP_NOISE, derive_seed, seeded_gaussian_noise
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards

USERS = 6
SEED = np.array([11, -7], np.int64)


def plan_for(
    model, *, noise_multiplier, optimizer="sgd", place="device", unit="user", state="reset"
):
    return plan_from_dict(
        {
            "version": 1,
            "task": {"model": model},
            "data": {"source": "digits", "partition": "dirichlet", "dirichlet_alpha": 0.5},
            "clients": {
                "population": USERS,
                "clients_per_round": USERS,
                "examples_per_client": 17,  # not a multiple of the batch size
                "sampling": "poisson",
            },
            "local_training": {
                "epochs": 2,
                "batch_size": 5,
                "learning_rate": 0.1,
                "optimizer": optimizer,
                "optimizer_state": state,
                # Far above the rounding of a gradient: Adam makes no step of that.
                "epsilon": 1e-3,
            },
            "privacy": {
                "unit": unit,
                "noise": place,
                "clip_norm": 0.4,
                "delta": 5e-3,
                "smallest_cohort": 4,
                "noise_multiplier": noise_multiplier,
            },
            "server": {"rounds": 1, "optimizer": "momentum", "learning_rate": 0.7},
            "simulation": {"users_per_shard": 4},
        }
    )


def flat(tensors):
    return np.concatenate([np.asarray(t).ravel() for t in tensors])


def round_in_tff(plan, model, data):
    with tff_runtime():
        process = build_learning_process(plan, model, data, noise_seed=SEED)
        shards = make_shards(data, np.arange(USERS), plan)
        state = process.next(process.initialize(), shards).state
        return flat(process.get_model_weights(state).trainable)


def noise_of_tff(plan, user, size):
    """The very vector the simulation adds for `user` in its first round."""
    if plan.privacy.noise_multiplier == 0:
        return np.zeros(size, np.float32)
    privacy = plan.privacy
    stddev = noise_stddev_of_share(
        clip_norm=privacy.clip_norm,
        noise_multiplier=privacy.noise_multiplier,
        smallest_cohort=privacy.smallest_cohort,
    )
    return seeded_gaussian_noise(seed_of_user(user), size=size, stddev=stddev).numpy()


def seed_of_user(user):
    """The seed of `user` in the simulation's first round."""
    round_seed = derive_seed(tf.constant(SEED), tf.constant(0, tf.int64))
    return derive_seed(round_seed, tf.constant(user, tf.int64))


def step_noises_of_tff(plan, user, size):
    """The vectors the simulation adds in the steps of `user` in its first round, in order."""
    seed = derive_seed(seed_of_user(user), tf.constant(STEP_NOISE, tf.int64))
    settings, privacy = plan.local_training, plan.privacy
    rate = settings.learning_rate if settings.optimizer == "sgd" else 1.0
    stddev = privacy.noise_multiplier * privacy.clip_norm * rate / settings.batch_size
    for step in itertools.count():
        of_step = derive_seed(seed, tf.constant(step, tf.int64))
        yield seeded_gaussian_noise(of_step, size=size, stddev=stddev).numpy()


def report_of_device(trainer, plan, weights, examples, user):
    """What the device of `user` sends when it is fed the simulation's noise."""
    given = {"weights": weights, "examples": examples}
    if plan.privacy.unit == "example":
        noises = step_noises_of_tff(plan, user, len(weights))

        def draw(parts):
            shares = np.split(next(noises), np.cumsum([part.size for part in parts])[:-1])
            for part, share in zip(parts, shares, strict=True):
                part[...] = share.reshape(part.shape)

        return trainer.train_private_steps(**given, draw_noise=draw)
    return trainer.train_round(**given, noise=noise_of_tff(plan, user, len(weights)))


@contextmanager
def serving(task, state):
    command = [sys.executable, "-m", "server.cli", "run", str(task), "--state", str(state)]
    command += ["--tokens", str(USERS), "--start-when", str(USERS), "--poll", "0.05", "--json"]
    log = state.parent / "server.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while not (state / "url.txt").exists():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield (state / "url.txt").read_text().strip()
    finally:
        server.terminate()
        server.wait(60)


def round_through_devices(plan, model, data, folder):
    manifest = export_client(plan, folder / "task", signing_key=folder / "author.key", model=model)
    state, task_id = folder / "state", manifest.task_id
    trainer = Trainer((folder / "task" / CLIENT_FILE).read_bytes(), manifest)
    with serving(folder / "task", state) as url, open_client(url) as client:
        tokens = (state / "tokens.txt").read_text().split()
        links = [Link(client, Ed25519PrivateKey.generate()) for _ in range(USERS)]
        for link, token in zip(links, tokens):
            link.enroll(token)
        for user, link in enumerate(links):
            answer = link.check_in(task_id=task_id)
            while answer.state == "wait":
                time.sleep(0.05)
                answer = link.check_in(task_id=task_id)
            raw = link.fetch_weights(
                task_id=task_id, round_number=answer.round_number, size=manifest.layout.nbytes
            )
            weights = vector_from_bytes(raw, size=manifest.layout.size)
            report = report_of_device(trainer, plan, weights, data.client(user), user)
            link.send_update(
                task_id=task_id, round_number=answer.round_number, body=vector_to_bytes(report)
            )
        latest = state / "latest.json"
        deadline = time.monotonic() + 60
        while not latest.exists() or json.loads(latest.read_text())["released_rounds"] < 1:
            assert time.monotonic() < deadline, "the round was not released"
            time.sleep(0.05)
    weights = (state / json.loads(latest.read_text())["weights"]).read_bytes()
    return vector_from_bytes(weights, size=manifest.layout.size)


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.5], ids=["no_noise", "fed_noise"])
@pytest.mark.parametrize(
    ("name", "optimizer", "unit"),
    [
        ("mlp", "sgd", "user"),
        ("cnn", "momentum", "user"),
        ("mlp", "adam", "example"),
        pytest.param("cnn", "momentum", "example", marks=pytest.mark.slow),
    ],
)
def test_one_round_in_tff_and_through_devices_give_the_same_weights(
    tmp_path, name, optimizer, unit, noise_multiplier
):
    settings = {"optimizer": optimizer, "unit": unit}
    plan = plan_for(name, noise_multiplier=noise_multiplier, **settings)
    data = load_federated_data(plan)
    model = build_model(name, input_shape=data.input_shape, classes=data.classes)
    simulated = round_in_tff(plan, model, data)
    shipped = round_through_devices(plan, model, data, tmp_path)
    start = flat(model.trainable_variables)
    np.testing.assert_allclose(shipped, simulated, atol=1e-5)
    # The comparison would be empty if nothing had moved, or no noise was there.
    moved = np.linalg.norm(simulated - start)
    assert moved > 1e-2
    if noise_multiplier:
        quiet = round_in_tff(plan_for(name, noise_multiplier=0.0, **settings), model, data)
        assert np.linalg.norm(simulated - quiet) > 1e-2


@pytest.mark.parametrize(("optimizer", "unit"), [("momentum", "user"), ("adam", "example")])
def test_kept_optimizer_states_are_the_same_in_tff_and_on_devices(tmp_path, optimizer, unit):
    """Three rounds; one user sits out the second."""
    plan = plan_for("mlp", noise_multiplier=0.0, optimizer=optimizer, unit=unit, state="keep")
    plan = replace(plan, server=replace(plan.server, optimizer="sgd", learning_rate=1.0))
    data = load_federated_data(plan)
    model = build_model("mlp", input_shape=data.input_shape, classes=data.classes)
    cohorts = [np.array(users, np.int64) for users in ([0, 1, 2, 4], [0, 2, 4, 5], [0, 1, 2, 4])]
    manifest = export_client(
        plan, tmp_path / "task", signing_key=tmp_path / "author.key", model=model
    )
    size = plan.local_training.kept_values(weights=manifest.layout.size)

    states = np.zeros((USERS, size), np.float32)
    with tff_runtime():
        process = build_learning_process(plan, model, data, noise_seed=SEED)
        state = process.initialize()
        for users in cohorts:
            shards = make_shards(data, users, plan, optimizer_states=states[users])
            output = process.next(state, shards)
            state, kept = output.state, output.metrics["kept"]
            states[kept["user_id"]] = kept["optimizer_state"]
        simulated = flat(process.get_model_weights(state).trainable)

    trainer = Trainer((tmp_path / "task" / CLIENT_FILE).read_bytes(), manifest)
    nothing = np.zeros(manifest.layout.size, np.float32)

    def no_noise(parts):
        for part in parts:
            part.fill(0)

    weights, own = flat(model.trainable_variables), np.zeros((USERS, size), np.float32)
    for users in cohorts:
        total = np.zeros_like(weights)
        for user in users:
            given = {
                "weights": weights,
                "examples": data.client(user),
                "optimizer_state": own[user],
            }
            if unit == "example":
                total += trainer.train_private_steps(**given, draw_noise=no_noise)
            else:
                total += trainer.train_round(**given, noise=nothing)
            own[user] = trainer.optimizer_state(before=own[user], weights=weights)
        weights = weights + total / plan.clients.clients_per_round
    np.testing.assert_allclose(weights, simulated, atol=1e-5)
    np.testing.assert_allclose(own, states, atol=1e-4)
    assert not own[3].any() and own[5].any()
