"""Stock TFF: unweighted FedAvg with its fixed-clipping Gaussian aggregator."""

from __future__ import annotations

import collections

from workload import BATCH, CLASSES, CLIP_NORM, NOISE_MULTIPLIER, RATE, SHAPE


def stock_functional(workload, rounds) -> None:
    """With `functional_model_from_keras`."""
    import tensorflow_federated as tff

    def make(model, loss, spec, metric):
        return tff.learning.models.functional_model_from_keras(
            model(), loss(), spec, metrics_constructor=lambda: collections.OrderedDict(a=metric())
        )

    _run(workload, rounds, make)


def stock_keras(workload, rounds) -> None:
    """With `from_keras_model`."""
    import tensorflow_federated as tff

    def make(model, loss, spec, metric):
        return lambda: tff.learning.models.from_keras_model(
            model(), loss=loss(), input_spec=spec, metrics=[metric()]
        )

    _run(workload, rounds, make)


def _run(workload, rounds, make) -> None:
    import tensorflow as tf
    import tensorflow_federated as tff

    from models.registry import build_model
    from tf_dpfl.simulation.runtime import tff_runtime

    if workload.unit != "user":
        raise ValueError("stock TFF has no example-level DP")
    images, labels = workload.floats(), workload.y
    model = make(
        lambda: build_model(workload.model, input_shape=SHAPE, classes=CLASSES),
        lambda: tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        (tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None], tf.int32)),
        tf.keras.metrics.SparseCategoricalAccuracy,
    )
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(RATE),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            NOISE_MULTIPLIER, workload.users, CLIP_NORM
        ),
    )

    def dataset(user):
        return tf.data.Dataset.from_tensor_slices((images[user], labels[user])).batch(BATCH)

    with tff_runtime():
        state = process.initialize()
        for cohort, _ in zip(workload.cohorts(), rounds):
            state = process.next(state, [dataset(user) for user in cohort]).state
