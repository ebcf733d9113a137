"""A small valid plan as plain values, for the tests of the protocol room."""

from copy import deepcopy

_TREE = {
    "version": 1,
    "task": {"model": "mlp"},
    "data": {"source": "digits"},
    "clients": {
        "population": 1000,
        "clients_per_round": 50,
        "examples_per_client": 20,
        "sampling": "poisson",
    },
    "local_training": {"epochs": 1, "batch_size": 10, "learning_rate": 0.1},
    "privacy": {
        "clip_norm": 0.5,
        "delta": 1e-5,
        "smallest_cohort": 25,
        "noise_multiplier": 1.0,
    },
    "server": {"rounds": 10},
}


def plan_tree(**sections):
    """The tree, with values of the named sections put over its own; None removes one."""
    tree = deepcopy(_TREE)
    for name, values in sections.items():
        section = tree.setdefault(name, {})
        for key, value in values.items():
            if value is None:
                section.pop(key, None)
            else:
                section[key] = value
    return tree
