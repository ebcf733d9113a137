"""A fixed-size draw nobody can foretell: it comes from the operating system, each time anew."""

from __future__ import annotations

import random

from server import admission

DEVICES = [f"{i:032x}" for i in range(200)]


def test_two_draws_are_two_draws_whatever_seeds_are_set() -> None:
    drawn = []
    for _ in range(3):
        random.seed(0)
        drawn.append(admission.draw_fixed(DEVICES, clients_per_round=100))
    # Two equal ones have a chance of 1 in 10^58.
    assert len(set(drawn)) == 3
    assert all(len(devices) == 100 for devices in drawn)
