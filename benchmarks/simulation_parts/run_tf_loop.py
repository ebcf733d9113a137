"""TensorFlow without a framework: a Keras model, its variables, a loop over users.

The round is one `tf.function`, as somebody would write it who knows TensorFlow:
images stay bytes in one tensor, users are looked up by id, training, clipping and
noise are in the graph.
"""

from __future__ import annotations

from workload import (
    BATCH,
    CLASSES,
    CLIP_NORM,
    EXAMPLES,
    NOISE_MULTIPLIER,
    RATE,
    SHAPE,
)


def tf_loop(workload, rounds) -> None:
    """User level only."""
    import tensorflow as tf

    from models.registry import build_model

    if workload.unit != "user":
        raise ValueError("the loop is written for the unit user")
    images, labels = tf.constant(workload.x), tf.constant(workload.y)
    model = build_model(workload.model, input_shape=SHAPE, classes=CLASSES)
    weights = model.trainable_variables
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def one_round(ids):
        start = [tf.identity(w) for w in weights]
        total = [tf.zeros_like(w) for w in weights]
        for user in ids:
            for w, s in zip(weights, start):
                w.assign(s)
            x = tf.cast(images[user], tf.float32) / 255.0
            y = labels[user]
            for begin in range(0, EXAMPLES, BATCH):
                with tf.GradientTape() as tape:
                    logits = model(x[begin : begin + BATCH], training=True)
                    value = loss(y[begin : begin + BATCH], logits)
                for w, g in zip(weights, tape.gradient(value, weights)):
                    w.assign_sub(RATE * g)
            update = [w - s for w, s in zip(weights, start)]
            clipped, _ = tf.clip_by_global_norm(update, CLIP_NORM)
            total = [t + u for t, u in zip(total, clipped)]
        for w, s, t in zip(weights, start, total):
            noise = tf.random.normal(t.shape, stddev=NOISE_MULTIPLIER * CLIP_NORM)
            w.assign(s + (t + noise) / float(workload.users))

    for cohort, _ in zip(workload.cohorts(), rounds):
        one_round(tf.constant(cohort))
