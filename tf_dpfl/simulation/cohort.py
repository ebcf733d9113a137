"""A simulated round's cohort: who takes part, from the run's secret seed, in how many shards."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.plan import Clients, Plan

# A shard pays for starting its graph once; more users than this add only memory.
_USERS_OF_A_LARGE_SHARD = 25


def draw_cohort(clients: Clients, *, run_seed: bytes, round_number: int) -> NDArray[np.int64]:
    """The user ids of one round, ascending; the same for the same seed and round.

    "poisson": each user of the population by an independent coin with
    probability clients_per_round / population, so the size varies and may be 0.
    "fixed": exactly clients_per_round users, uniformly without replacement.
    Accounting uses the same word and the same probability. Memory is the cohort's,
    not the population's: the number of coins that fall so is binomial, and given
    their number every set of users is as likely.
    """
    random = np.random.default_rng(
        int.from_bytes(derive_bytes(run_seed, f"cohort {round_number}"), "little")
    )
    count = clients.clients_per_round
    if clients.sampling == "poisson":
        count = random.binomial(clients.population, clients.sampling_probability)
    drawn = random.choice(clients.population, count, replace=False, shuffle=False)
    return np.sort(drawn).astype(np.int64)


def shards_of_a_round(plan: Plan, *, places: int) -> int:
    """Into how many shards every cohort is cut, evenly, >= 1.

    The same for every round, whoever joins: for another number of clients TFF
    makes its graphs' sessions anew. As `simulation.users_per_shard` says; without
    it a multiple of `places` (shards computed at a time, >= 1), so that none of
    them rests while others finish. Changes a round's sum in its last bits only.
    """
    expected = plan.clients.clients_per_round
    if plan.simulation.users_per_shard is not None:
        return -(-expected // plan.simulation.users_per_shard)
    turns = -(-expected // (places * _USERS_OF_A_LARGE_SHARD))
    return min(expected, places * turns)


def derive_bytes(run_seed: bytes, purpose: str) -> bytes:
    """32 bytes that differ for every purpose and tell nothing about each other."""
    return hashlib.sha256(run_seed + purpose.encode()).digest()
