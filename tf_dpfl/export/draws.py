"""The random batches and weights that one comparison of `verify` is made on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.protocol.tensors import Float32

# A pre-activation within rounding of a ReLU's kink, or two within rounding of
# each other in a pooling window, send the gradient different ways in two
# correct programs. That is gone with other data; a wrong rule is not. Where
# millions of pre-activations come together it is in most draws, so that a check
# of gradients goes on with draws of few: two examples still show a wrong sum, and
# the padding around them an example that leaks into another's gradient; two steps
# still show a wrong optimizer. A check of values has no kinks, and no more chances.
_FULL_DRAWS = 3
_SMALL_DRAWS = 5
_SMALL = 2

_SHAKE = 0.05


@dataclass(frozen=True)
class Batch:
    """One padded batch, as the signature `train` takes it."""

    tensors: Mapping[str, Any]
    weight: Float32

    def break_an_example(self, numbers: Collection[str]) -> int | None:
        """Puts NaN into one example's first input of `numbers`: which one; None without any."""
        for name in numbers:
            real = np.flatnonzero(self.weight)
            spoiled = int(real[1 % len(real)])
            self.tensors[name][spoiled] = np.nan
            return spoiled
        return None


@dataclass(frozen=True)
class Draw:
    """What a check draws its numbers from, and how much of them.

    Attributes:
      rng: of this draw; the draws of a check go on from one another.
      small: at most two real examples, anywhere in the batch, and two steps.
    """

    rng: np.random.Generator
    small: bool

    def steps(self, number: int) -> int:
        """How many of `number` steps to take."""
        return min(number, _SMALL) if self.small else number

    def batch(self, examples: RandomExamples, *, size: int, real: int) -> Batch:
        """`size` examples of which the first `real` count, or two of those where it is small."""
        weight = (np.arange(size) < real).astype(np.float32)
        if self.small and real > _SMALL:
            padding = self.rng.permutation(real)[_SMALL:]
            weight[padding] = 0.0
        return Batch(examples.batch(self.rng, size), weight)

    def weights(self, initial: Float32, *, shaken: bool) -> Float32:
        """The `initial` weights, or those plus noise.

        A layer that starts at zero passes no gradient on, which would hide
        every rule in front of it.
        """
        if not shaken:
            return initial
        return initial + self.rng.normal(scale=_SHAKE, size=initial.size).astype(np.float32)


Check = Callable[[Draw], list[str]]
"""One comparison on the numbers of a draw; returns its faults."""


def draws(seed: int, *, kinks: bool) -> Iterator[Draw]:
    """The draws of one check; it has failed when each of them shows a fault.

    Args:
      seed: of the random numbers.
      kinks: whether the check compares gradients, which kinks make differ.
    """
    rng = np.random.default_rng(seed)
    for number in range(_FULL_DRAWS + (_SMALL_DRAWS if kinks else 0)):
        yield Draw(rng, small=number >= _FULL_DRAWS)
