"""Which users take part in a simulated round, from the run's secret seed."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.plan import Clients


def draw_cohort(clients: Clients, *, run_seed: bytes, round_number: int) -> NDArray[np.int64]:
    """The user ids of one round, ascending; the same for the same seed and round.

    "poisson": each user of the population by an independent coin with
    probability clients_per_round / population, so the size varies and may be 0.
    "fixed": exactly clients_per_round users, uniformly without replacement.
    Accounting uses the same word and the same probability.
    """
    random = np.random.default_rng(
        int.from_bytes(derive_bytes(run_seed, f"cohort {round_number}"), "little")
    )
    if clients.sampling == "poisson":
        coins = random.random(clients.population) < clients.sampling_probability
        return np.flatnonzero(coins).astype(np.int64)
    drawn = random.choice(clients.population, clients.clients_per_round, replace=False)
    return np.sort(drawn).astype(np.int64)


def derive_bytes(run_seed: bytes, purpose: str) -> bytes:
    """32 bytes that differ for every purpose and tell nothing about each other."""
    return hashlib.sha256(run_seed + purpose.encode()).digest()
