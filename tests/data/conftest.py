"""What the tests of data share: a plan with any values put over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tf_dpfl.protocol.plan import Plan, plan_from_dict

PlanMaker = Callable[..., Plan]


@pytest.fixture
def make_plan() -> PlanMaker:
    def make(*, data: Mapping[str, Any], population: int, examples_per_client: int) -> Plan:
        return plan_from_dict(
            {
                "version": 1,
                "task": {"model": "linear"},
                "data": dict(data),
                "clients": {
                    "population": population,
                    "clients_per_round": 1,
                    "examples_per_client": examples_per_client,
                    "sampling": "fixed",
                },
                "local_training": {"epochs": 1, "batch_size": 5, "learning_rate": 0.1},
                "privacy": {
                    "clip_norm": 1.0,
                    "delta": 1e-6,
                    "smallest_cohort": 1,
                    "noise_multiplier": 1.0,
                },
                "server": {"rounds": 1},
            }
        )

    return make
