"""What the tests of the commands share: a plan on data that need no network, a refusal."""

from __future__ import annotations

import pytest

from tf_dpfl.cli.main import main

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


@pytest.fixture
def refused(capsys):
    """Runs `dpfl ARGV`, which must refuse its input; returns what it says of it.

    Status 2, argparse's own exits included, a line for each of `faults`, and nothing else.
    """

    def run(*argv, faults=1):
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        assert (status, len(lines), printed.out) == (2, faults, ""), printed.err
        assert all(line.startswith("dpfl") for line in lines)
        return printed.err

    return run
