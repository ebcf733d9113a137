"""Plans and models shared by the simulation's tests."""

from dataclasses import replace

import tensorflow as tf

from tf_dpfl.protocol.plan import Plan, plan_from_dict


def digits_plan(**privacy) -> Plan:
    """A small plan on scikit-learn's digits; `privacy` overrides that section."""
    return plan_from_dict(
        {
            "version": 1,
            "task": {"model": "mlp"},
            "data": {"source": "digits", "partition": "iid"},
            "clients": {
                "population": 40,
                "clients_per_round": 8,
                "examples_per_client": 10,
                "sampling": "fixed",
            },
            "local_training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.1},
            "privacy": {
                "clip_norm": 0.5,
                "delta": 1e-3,
                "smallest_cohort": 4,
                "noise_multiplier": 0.0,
            }
            | privacy,
            "server": {"rounds": 3},
            "simulation": {"users_per_shard": 3, "evaluate_every": 2, "checkpoint_every": 2},
        }
    )


def with_server(plan: Plan, **server) -> Plan:
    """The plan with values of the server section replaced."""
    return replace(plan, server=replace(plan.server, **server))


def correlated_plan(mechanism, *, rounds=12, bands=None, noise_multiplier=2.0, **privacy):
    """5 rounds of separation: 8 of 40 users a round."""
    plan = digits_plan(noise="server", noise_multiplier=noise_multiplier, **privacy)
    if mechanism == "gaussian":
        return with_server(plan, rounds=rounds)
    return replace(
        with_server(plan, rounds=rounds),
        clients=replace(plan.clients, sampling="min_separation"),
        privacy=replace(plan.privacy, mechanism=mechanism, bands=bands),
    )


def small_mlp(shape=(8, 8, 1), classes=10) -> tf.keras.Model:
    """A fresh model of 1,300 weights or so."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.InputLayer(shape),
            layers.Flatten(),
            layers.Dense(16, "tanh"),
            layers.Dense(classes),
        ]
    )
