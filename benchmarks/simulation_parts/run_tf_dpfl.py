"""This project: its whole path, from ids to a released model with noise."""

from __future__ import annotations

from workload import (
    BATCH,
    CLASSES,
    CLIP_NORM,
    EXAMPLES,
    NOISE_MULTIPLIER,
    POPULATION,
    RATE,
    SHAPE,
)


def tf_dpfl(workload, rounds) -> None:
    """A TFF learning process; examples are read by id from shared memory."""
    import numpy as np

    from models.registry import build_model
    from tf_dpfl.data.columns import FederatedData
    from tf_dpfl.data.sharing import shared_on_this_machine
    from tf_dpfl.protocol.plan import plan_from_dict
    from tf_dpfl.simulation.process import build_learning_process
    from tf_dpfl.simulation.runtime import tff_runtime
    from tf_dpfl.simulation.shard import make_shards

    plan = plan_from_dict(
        {
            "version": 1,
            "task": {"model": workload.model},
            "data": {"source": "fashion_mnist"},
            "clients": {
                "population": POPULATION,
                "clients_per_round": workload.users,
                "examples_per_client": EXAMPLES,
                "sampling": "fixed",
            },
            "local_training": {"epochs": 1, "batch_size": BATCH, "learning_rate": RATE},
            "privacy": {
                "unit": workload.unit,
                "clip_norm": CLIP_NORM,
                "delta": 1e-6,
                "smallest_cohort": 1,
                "noise_multiplier": NOISE_MULTIPLIER,
                "noise": "server" if workload.unit == "user" else "device",
            },
            "server": {"rounds": 1},
        }
    )
    images = np.asarray(workload.x).reshape(-1, *SHAPE)
    data = FederatedData(
        inputs={"x": images},
        target=workload.y.reshape(-1),
        offsets=np.arange(POPULATION + 1) * EXAMPLES,
        feature_scale=255.0,
        classes=CLASSES,
        test={"x": np.zeros((0, *SHAPE), np.float32), "y": np.zeros(0, np.int32)},
        client_names=[str(i) for i in range(POPULATION)],
    )
    model = build_model(workload.model, input_shape=SHAPE, classes=CLASSES)
    with (
        shared_on_this_machine(data) as data,
        tff_runtime(inherited=data.files.descriptors),
    ):
        process = build_learning_process(plan, model, data)
        state = process.initialize()
        for cohort, _ in zip(workload.cohorts(), rounds):
            output = process.next(state, make_shards(data, cohort, plan))
            state = output.state
            if int(output.metrics["reports"]) != workload.users:
                raise RuntimeError(f"only {output.metrics['reports']} users reported")
