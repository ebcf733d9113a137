"""The sum of clipped per-example gradients, by either method, and the choice of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from tf_dpfl.client_work.per_example.loop import Losses, loop_clipped_sum
from tf_dpfl.client_work.per_example.one_pass import one_pass_clipped_sum
from tf_dpfl.client_work.per_example.refusals import NoSoundRuleError

_METHODS = {"one_pass": one_pass_clipped_sum, "loop": loop_clipped_sum}


@dataclass(frozen=True)
class Method:
    """A method by name ("one_pass" or "loop"), and why it was chosen."""

    name: str
    reason: str


def clipped_gradient_sum(
    losses: Losses,
    batch: Mapping[str, tf.Tensor],
    weight: tf.Tensor,
    random: tf.Tensor | None,
    *,
    variables: Sequence[tf.Variable],
    scale: tf.Tensor,
    sensitivity: tf.Tensor,
    op_gradients: Mapping[str, str],
    method: str,
) -> list[tf.Tensor]:
    """Sum over the examples of weight_i * gradient_i * min(scale, sensitivity / its norm).

    One tensor a variable. With `scale` 1 gradients are clipped to the norm `sensitivity`.

    To be called while tracing a graph. The result has no influence of an example
    beyond its own clipped term, and nothing else about an example is returned.

    Args:
      losses: `losses(batch, random)` traces the forward pass and returns the
        loss of each example, float32 [n], for the n rows it is given.
      batch: tensors [B, ...] by name, B static.
      weight: float32 [B], 1 for an example and 0 for padding.
      random: float32 [B, r], each example's random values, or None.
      variables: float32 variables, of static shape.
      scale: float32 [], what gradients are multiplied with before they are clipped.
      sensitivity: float32 [], the largest L2 norm of one example's contribution
        over all variables together; finite and >= 0.
      op_gradients: op type -> registered gradient name to use instead of
        TensorFlow's own; may be empty.
      method: "one_pass" (one forward and one backward pass over the batch) or
        "loop" (over the examples).

    Guarantees, see `clipping`: each contribution is at most `sensitivity` in
    float32; an example of weight 0, or whose loss or gradient is not finite,
    contributes zero and changes nothing for the others.

    Raises:
      NoSoundRuleError: `method` is "one_pass" and the model has a place where it
        is not known to be right.
    """
    return _METHODS[method](
        losses,
        batch,
        weight,
        random,
        variables=variables,
        scale=scale,
        sensitivity=sensitivity,
        op_gradients=op_gradients,
    )


def choose_method(
    losses: Losses,
    batch: Mapping[str, tf.TensorSpec],
    random: tf.TensorSpec | None,
    *,
    variables: Sequence[tf.Variable],
    op_gradients: Mapping[str, str],
) -> Method:
    """ "one_pass" where it is sound for this model, otherwise "loop" with the reason.

    Traces the model in a graph of its own.

    Args:
      losses, variables, op_gradients: as for `clipped_gradient_sum`.
      batch: shape and dtype of each tensor, with the static batch size.
      random: shape and dtype of the random values, or None.
    """
    size = next(iter(batch.values())).shape[0]

    def trace(
        batch: Mapping[str, tf.Tensor],
        weight: tf.Tensor,
        sensitivity: tf.Tensor,
        random: tf.Tensor | None,
    ) -> list[tf.Tensor]:
        return one_pass_clipped_sum(
            losses,
            batch,
            weight,
            random,
            variables=variables,
            scale=tf.constant(1.0),
            sensitivity=sensitivity,
            op_gradients=op_gradients,
        )

    try:
        tf.function(trace, autograph=False).get_concrete_function(
            dict(batch), tf.TensorSpec([size]), tf.TensorSpec([]), random
        )
    except NoSoundRuleError as error:
        return Method("loop", str(error))
    return Method("one_pass", "every place where a weight meets the batch has a sound rule")
