"""Rounds whose clip norm follows the users' norms, and the updates that it follows."""

from dataclasses import replace

import numpy as np
from plans import digits_plan, with_server
from process_rounds import USERS, clipped_update, flat, start

from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards

SEED = np.array([5, 6], np.int64)
STILL = 1e-30  # a server that keeps the model, so that the users' norms stay what they are


def adaptive_plan(*, learning_rate=1.0, population=40, cohort=8, local=None, **privacy):
    plan = with_server(digits_plan(adaptive_clipping=True, **privacy), learning_rate=learning_rate)
    clients = replace(plan.clients, population=population, clients_per_round=cohort)
    training = replace(plan.local_training, **(local or {}))
    return replace(plan, clients=clients, local_training=training)


def rounds_of(plan, model, data, rounds, users=USERS, shards=None):
    """(clip norm of every round and of the one after, weights after every round)."""
    clip_norms, weights = [], [start(model)]
    with tff_runtime():
        process = build_learning_process(plan, model, data, noise_seed=SEED)
        state = process.initialize()
        for _ in range(rounds):
            output = process.next(
                state, make_shards(data, users, plan) if shards is None else shards
            )
            state = output.state
            clip_norms.append(float(output.metrics["clip_norm"]))
            weights.append(flat(process.get_model_weights(state)))
    return [*clip_norms, float(state.aggregator["clip_norm"])], weights


def updates_of(plan, model, data, users):
    """Every user's update, by a readable loop."""
    plan = replace(plan, privacy=replace(plan.privacy, clip_norm=1e9))
    return [clipped_update(plan, model, *data.client(int(u)).values()) for u in users]
