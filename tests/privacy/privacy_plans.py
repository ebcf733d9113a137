"""Small plans for the tests of the privacy room."""

from copy import deepcopy

from tf_dpfl.protocol.plan import plan_from_dict

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
    "server": {"rounds": 20},
}


def small_plan(**sections):
    """A plan with values of the named sections replaced; None removes one."""
    tree = deepcopy(_TREE)
    for name, values in sections.items():
        tree[name] = {k: v for k, v in {**tree[name], **values}.items() if v is not None}
    return plan_from_dict(tree)
