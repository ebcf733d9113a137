"""A plan for the tests of the commands, on data that need no network."""

from __future__ import annotations

import pytest

PLAN = """\
version = 1

[task]
model = "linear"

[data]
source = "digits"

[clients]
population = 60
clients_per_round = 30
examples_per_client = 20
sampling = "poisson"

[local_training]
epochs = 1
batch_size = 10
learning_rate = 0.1

[privacy]
clip_norm = 0.5
noise_multiplier = 1.0
delta = 1e-3
smallest_cohort = 20

[server]
rounds = 10
"""


@pytest.fixture
def plan_file(tmp_path_factory):
    """The plan as a file of its own."""
    file = tmp_path_factory.mktemp("plans") / "plan.toml"
    file.write_text(PLAN)
    return file
