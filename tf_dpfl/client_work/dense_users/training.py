"""Training a block of users of a dense network at once, each on its own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from tf_dpfl.client_work.dense_users.network import DenseNet
from tf_dpfl.client_work.update import (
    clip_factor,
    flushed_of_products,
    rounding_of_products,
    sum_of_squares,
)
from tf_dpfl.protocol.interface import TARGET
from tf_dpfl.protocol.plan import LocalTraining


@dataclass(frozen=True)
class BlockUpdates:
    """The updates of a block's K users.

    Attributes:
      rows: for each low-rank kernel its inputs, [K, N, p].
      coefficients: for each low-rank kernel D, [K, N, q]: the update is rows^T D.
      changes: for each other variable its change, [K, ...].
      squared_norms: float32 [K], of the whole updates and never below, but for the
        rounding that clipping's margin covers.
    """

    net: DenseNet
    rows: Sequence[tf.Tensor]
    coefficients: Sequence[tf.Tensor]
    changes: Sequence[tf.Tensor]
    squared_norms: tf.Tensor

    def clipped_sum(
        self, clip_norm: tf.Tensor, counts: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The sum of the clipped updates, one tensor a variable, and who is broken.

        Args:
          clip_norm: float32 [].
          counts: int32 [K], examples of each user; one without any changes nothing.

        Returns:
          (sums, broken): users whose update is not finite (bool [K]) count as zero.
        """
        finite = self.squared_norms < tf.float32.max
        takes_part = tf.logical_and(finite, counts > 0)
        factor = tf.where(takes_part, clip_factor(self.squared_norms, clip_norm), 0.0)

        def total(clean: bool) -> list[tf.Tensor]:
            # Select, not multiply, where somebody is broken: NaN times 0 is NaN.
            def of(values: tf.Tensor) -> tf.Tensor:
                return values if clean else _rows_of(takes_part, values)

            sums: dict[int, tf.Tensor] = {}
            for kernel, rows, d in zip(self.net.low_rank, self.rows, self.coefficients):
                scaled = of(d) * factor[:, None, None]
                sums[kernel.variable] = tf.matmul(
                    tf.reshape(of(rows), [-1, rows.shape[-1]]),
                    tf.reshape(scaled, [-1, d.shape[-1]]),
                    transpose_a=True,
                )
            for index, change in zip(self.net.others, self.changes):
                sums[index] = tf.tensordot(factor, of(change), 1)
            return [sums[index] for index in range(len(self.net.variables))]

        sums = tf.cond(tf.reduce_all(takes_part), lambda: total(True), lambda: total(False))
        return sums, tf.logical_and(tf.logical_not(finite), counts > 0)

    def unclipped(self, clip_norm: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Whose update `clipped_sum` leaves as it is: bool [K]. No broken one's is."""
        return (tf.sqrt(self.squared_norms) <= clip_norm) | (counts == 0)


def train_users(
    net: DenseNet,
    start: Sequence[tf.Tensor],
    examples: Mapping[str, tf.Tensor],
    counts: tf.Tensor,
    *,
    settings: LocalTraining,
    random: Callable[[tf.Tensor], tf.Tensor] | None,
) -> BlockUpdates:
    """Local training of K users as `train_locally` does it for each.

    Args:
      net: the model.
      start: where all users start, one tensor a trained variable.
      examples: inputs and target, [K, N, ...] each, N a multiple of the batch size
        and at least a batch; K static. Rows beyond a user's count must be finite
        wherever its own are.
      counts: int32 [K].
      settings: the plan's section; its optimizer is sgd or momentum.
      random: uniforms of each user's step number i (int32 [K], counted over its own
        batches), float32 [K, batch_size, random_values]; None for a model without
        random layers.
    """
    size, users = settings.batch_size, counts.shape[0]
    length = tf.shape(examples[TARGET])[1]
    steps_of_epoch = length // size
    rows = _constant_inputs(net, examples)
    products = [
        tf.reshape(tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), start[k.variable]), [users, -1, q])
        for k, x in zip(net.low_rank, rows)
        for q in (start[k.variable].shape[-1],)
    ]
    grams = [tf.matmul(x, x, transpose_b=True) for x in rows]
    zero = [tf.zeros_like(z) for z in products]
    own = [tf.tile(start[i][None], [users] + [1] * start[i].shape.rank) for i in net.others]
    velocity = [tf.zeros_like(v) for v in (*zero, *own)] if settings.optimizer == "momentum" else []

    def step(index: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        first = index % steps_of_epoch * size
        here = slice(first, first + size)
        # Rows that no step has come to yet have no coefficients.
        known = tf.minimum(index, steps_of_epoch) * size
        values, speeds = state[: len(zero) + len(own)], state[len(zero) + len(own) :]
        coefficients, weights = values[: len(zero)], values[len(zero) :]
        met = [
            _fixed(z[:, here] + tf.matmul(g[:, here, :known], d[:, :known]), size)
            for z, g, d in zip(products, grams, coefficients)
        ]
        weight = tf.cast(first + tf.range(size) < counts[:, None], tf.float32)
        fed = {t.name: _fixed(examples[t.name][:, here], size) for t in net.interface.tensors}
        if random is not None:
            batches = (counts + size - 1) // size
            fed["random"] = random(index // steps_of_epoch * batches + index % steps_of_epoch)
        losses = _losses(net, fed, met, weights)
        loss = tf.reduce_sum(
            tf.reduce_sum(losses * weight, 1) / tf.maximum(tf.reduce_sum(weight, 1), 1.0)
        )
        gradients = [
            tf.zeros_like(v) if g is None else tf.convert_to_tensor(g)
            for v, g in zip([*met, *weights], tf.gradients(loss, [*met, *weights]))
        ]
        after = length - first - size
        gradients[: len(zero)] = [
            tf.pad(g, [[0, 0], [first, after], [0, 0]]) for g in gradients[: len(zero)]
        ]
        starts = [*zero, *(start[i][None] for i in net.others)]
        changed = _optimizer_step(
            settings, values, speeds, gradients, starts, active=first < counts
        )
        return (index + 1, *changed)

    state = (tf.constant(0), *zero, *own, *velocity)
    open_length = [
        tf.TensorShape([users, None, z.shape[-1]]) if i < len(zero) else z.shape
        for i, z in enumerate((*zero, *own))
    ]
    _, *state = tf.while_loop(
        lambda index, *_: index < settings.epochs * steps_of_epoch,
        step,
        state,
        parallel_iterations=1,
        shape_invariants=(
            tf.TensorShape([]),
            *open_length,
            *(open_length if velocity else []),
        ),
    )
    coefficients = state[: len(zero)]
    changes = [w - start[i] for i, w in zip(net.others, state[len(zero) :])]
    squared = [_squared_norm(x, g, d) for x, g, d in zip(rows, grams, coefficients)]
    squared += [sum_of_squares(tf.reshape(c, [users, -1])) for c in changes]
    return BlockUpdates(net, rows, coefficients, changes, tf.add_n(squared))


def _constant_inputs(net: DenseNet, examples: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
    """The inputs of the low-rank layers, [K, N, p] each, computed once."""
    users = examples[TARGET].shape[0]
    given = [
        (
            net.input_tensor(t.name),
            tf.reshape(examples[t.name], [-1, *t.shape]),
        )
        for t in net.interface.inputs
    ]
    inputs = net.prefix.run([kernel.inputs for kernel in net.low_rank], given)
    return [tf.reshape(x, [users, -1, x.shape[-1]]) for x in inputs]


def _losses(
    net: DenseNet,
    fed: Mapping[str, tf.Tensor],
    met: Sequence[tf.Tensor],
    weights: Sequence[tf.Tensor],
) -> tf.Tensor:
    """The losses of one step, [K, B], of every user under its own weights."""
    names = list(fed)

    def of_one(user: tuple[Sequence[tf.Tensor], ...]) -> tf.Tensor:
        batch, products, others = user
        given = [(net.batch_tensor(n), value) for n, value in zip(names, batch)]
        given += [(kernel.product, z) for kernel, z in zip(net.low_rank, products)]
        given += [(r, w) for i, w in zip(net.others, others) for r in net.reads[i]]
        return net.losses.run([net.losses.graph.outputs[0]], given)[0]

    everything = ([fed[name] for name in names], list(met), list(weights))
    return tf.vectorized_map(of_one, everything, fallback_to_while_loop=False)


def _optimizer_step(
    settings: LocalTraining,
    values: Sequence[tf.Tensor],
    speeds: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    starts: Sequence[tf.Tensor],
    *,
    active: tf.Tensor,
) -> list[tf.Tensor]:
    """New values, then new velocities: the formulas of `LocalOptimizer`.

    `active`: bool [K], users that still have a batch in this epoch. Of the others the
    gradients are zero, but momentum and the proximal term would go on.
    """
    rate = settings.learning_rate
    plain = settings.optimizer == "sgd"
    if settings.proximal:
        gradients = [g + settings.proximal * (v - s) for g, v, s in zip(gradients, values, starts)]
    if plain and not settings.proximal:
        return [v - rate * g for v, g in zip(values, gradients)]
    going = [_like(active, g) for g in gradients]
    if plain:
        return [v - rate * g * a for v, g, a in zip(values, gradients, going)]
    moved = [s + a * (settings.momentum * s + g - s) for s, g, a in zip(speeds, gradients, going)]
    return [*(v - rate * s * a for v, s, a in zip(values, moved, going)), *moved]


def _squared_norm(rows: tf.Tensor, gram: tf.Tensor, coefficients: tf.Tensor) -> tf.Tensor:
    """Squared norm of rows^T D for each user, [K], from the Gram matrix of the rows.

    Its terms may cancel or be flushed to zero; what that can do to them is added, so that
    the norm is never too small.
    """
    squared = tf.reduce_sum(coefficients * tf.matmul(gram, coefficients), [1, 2])
    of_rows, of_columns = tf.sqrt(tf.linalg.diag_part(gram)), tf.norm(coefficients, axis=2)
    sizes = (rows.shape[-1], coefficients.shape[-1])
    rounded = rounding_of_products(tf.reduce_sum(of_rows * of_columns, 1), sum(sizes))
    flushed = flushed_of_products(
        tf.reduce_sum(of_rows, 1),
        tf.reduce_sum(of_columns, 1),
        sizes=sizes,
        count=tf.cast(tf.shape(rows)[1], tf.float32),
    )
    return tf.maximum(squared, 0.0) + rounded + flushed


def _rows_of(users: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`values` [K, ...] with zeros for the users that are not in `users` (bool [K])."""
    return tf.where(tf.reshape(users, [-1] + [1] * (values.shape.rank - 1)), values, 0.0)


def _like(active: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.cast(active, tf.float32), [-1] + [1] * (values.shape.rank - 1))


def _fixed(values: tf.Tensor, size: int) -> tf.Tensor:
    """`values` [K, B, ...] with B known to be `size`."""
    return tf.ensure_shape(values, [values.shape[0], size, *values.shape[2:]])
