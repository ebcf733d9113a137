"""One pass over a large batch, a part of it at a time.

What all examples make at once does not fit a processor's cache, and a device holds it in
memory. The sum is over examples, so parts of the batch can follow one another: a step of
DP-SGD of the benchmark's ResNet on 32 images takes 101 milliseconds and 207 MB of memory
at once, 89 and 86 in parts of four (LiteRT 2.3; tflite-runtime 2.14: 108 and 90 milliseconds).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

# Of the largest tensor with a row for each example.
_MOST_BYTES = 2 * 2**20
_FEWEST = 2  # one example is the loop's


def examples_at_once(graph: Any, examples: int) -> int:
    """How many of `examples` to take at once: all, or a divisor of their number.

    `graph`: of one pass over all of them, with static shapes.
    """
    largest = max(
        (
            math.prod(output.shape) * output.dtype.size
            for op in graph.get_operations()
            for output in op.outputs
            if output.shape.is_fully_defined() and output.shape[:1] == [examples]
        ),
        default=0,
    )
    divisors = [n for n in range(_FEWEST, examples + 1) if examples % n == 0]
    fitting = [n for n in divisors if largest * n <= _MOST_BYTES * examples]
    return max(fitting) if fitting else min(divisors, default=examples)


def sum_of_parts(
    clipped_sum: Callable[..., list[tf.Tensor]],
    batch: Mapping[str, tf.Tensor],
    weight: tf.Tensor,
    random: tf.Tensor | None,
    *,
    at_once: int,
    shapes: Sequence[Any],
) -> list[tf.Tensor]:
    """`clipped_sum(batch, weight, random)`, added up over parts of `at_once` examples.

    It returns one tensor for each of the static `shapes`.
    """
    parts, names = weight.shape[0] // at_once, list(batch)
    rows = [*batch.values(), weight, *([] if random is None else [random])]
    rows = [tf.reshape(values, [parts, at_once, *values.shape[1:]]) for values in rows]

    def add_part(index: tf.Tensor, *total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Not slices: where one begins is no constant here, and TFLite loses its shape.
        part = [tf.reshape(tf.gather(values, [index]), values.shape[1:]) for values in rows]
        others = part[len(names) :]
        added = clipped_sum(dict(zip(names, part)), others[0], *(others[1:] or [None]))
        return index + 1, *(a + b for a, b in zip(total, added))

    _, *total = tf.while_loop(
        lambda index, *_: index < parts,
        add_part,
        (tf.constant(0), *(tf.zeros(shape) for shape in shapes)),
        parallel_iterations=1,  # memory: one part's activations at a time
    )
    return total
