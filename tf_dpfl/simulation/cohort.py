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
    "min_separation": the next clients_per_round users of a random order of all of them,
    round and round; everyone takes part as often, and nothing has to be remembered.
    Accounting uses the same word and the same probability. Memory is the cohort's,
    not the population's: the number of coins that fall so is binomial, and given
    their number every set of users is as likely.
    """
    if clients.sampling == "min_separation":
        return _next_in_order(clients, run_seed, round_number)
    random = np.random.default_rng(
        int.from_bytes(derive_bytes(run_seed, f"cohort {round_number}"), "little")
    )
    count = clients.clients_per_round
    if clients.sampling == "poisson":
        count = random.binomial(clients.population, clients.sampling_probability)
    drawn = random.choice(clients.population, count, replace=False, shuffle=False)
    return np.sort(drawn).astype(np.int64)


def _next_in_order(clients: Clients, run_seed: bytes, round_number: int) -> NDArray[np.int64]:
    """The users at the next places of the run's order of all users.

    A user's places are `population` apart, so its rounds are at least
    floor(population / clients_per_round) apart. The order need not be secret.
    """
    count, population = clients.clients_per_round, clients.population
    first = (round_number - 1) % population * count  # the product fits in int64
    places = (first + np.arange(count, dtype=np.int64)) % population
    return np.sort(_permuted(places, below=population, key=derive_bytes(run_seed, "order")))


def _permuted(values: NDArray[np.int64], *, below: int, key: bytes) -> NDArray[np.int64]:
    """Distinct values in [0, below) as others there: one permutation for each key.

    A Feistel network over the next even number of bits, walked along its cycles until
    below (Black & Rogaway 2002): a permutation that takes no memory. For balance, not
    for secrecy: its rounds are a mixing function, not a cipher.
    """
    half = max(1, -(-(below - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    round_keys = np.frombuffer(key, np.uint64)

    def network(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> np.uint64(half), numbers & mask
        for round_key in np.concatenate([round_keys, ~round_keys]):
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        return (left << np.uint64(half)) | right

    result = network(values.astype(np.uint64))
    while (outside := result >= below).any():
        result[outside] = network(result[outside])
    return result.astype(np.int64)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every bit depends on every other."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


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
