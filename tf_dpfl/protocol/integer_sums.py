"""Updates as integers that add up modulo 2^bits: what a secure sum can carry.

On the client: clip, turn by a public random rotation (which makes all coordinates
about equally large), scale, round to integers at random until the norm is within a
known bound, add integer noise (`integer_noise`), wrap. On the server: sum, unwrap,
scale and turn back. After Kairouz et al. 2102.06387 and Agarwal et al. 2110.04995;
`privacy.accounting_integers` says what a sum gives away.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.checks import require_finite_positive
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.integer_noise import Integers
from tf_dpfl.protocol.noise import fresh_key_stream
from tf_dpfl.protocol.tensors import Float32

MOST_BITS = 62
"""Of an entry; int64 holds the sum of two such."""

DEFAULT_BETA = math.exp(-0.5)
"""Of conditional rounding, as in section 4 of 2102.06387."""

# A try fails with a probability of at most beta: so many in a row with 0.999^10000.
_MOST_TRIES = 10_000
# Squared norms of integers are then exact in int64.
_LARGEST_SCALED_NORM = 2.0**30


@dataclass(frozen=True)
class IntegerSum:
    """How updates of one round are turned into integers, alike on all clients and the server.

    Attributes:
      size: entries of an update, >= 1.
      clip_norm: L2 bound of an update, finite and > 0.
      scale: integers for each unit of the (rotated) update, finite and > 0; clip_norm
        times scale is below 2^30.
      bits: of one entry of the sum, 2 to 62. A sum beyond them wraps and is lost, unseen:
        see `wrapping_deviations`.
      rotation_seed: public, the same for all of a round; of any length.
      beta: how much of the rounding's upper tail is thrown away, in [0, 1); more makes
        the bound on the norm smaller and the rounding slightly biased. 0 keeps all.
    """

    size: int
    clip_norm: float
    scale: float
    bits: int
    rotation_seed: bytes
    beta: float = DEFAULT_BETA

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of range."""
        if not self.size >= 1:
            raise ValueError(f"size={self.size!r} must be >= 1")
        require_finite_positive("clip_norm", self.clip_norm)
        require_finite_positive("scale", self.scale)
        if not self.clip_norm * self.scale < _LARGEST_SCALED_NORM:
            raise ValueError(
                f"clip_norm * scale = {self.clip_norm * self.scale:g} must be below 2^30: "
                "choose a smaller scale"
            )
        if not 2 <= self.bits <= MOST_BITS:
            raise ValueError(f"bits={self.bits!r} must be from 2 to {MOST_BITS}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta={self.beta!r} must be in [0, 1)")

    @property
    def padded(self) -> int:
        """Entries on the wire: the next power of two, which the rotation needs."""
        return int(1 << (self.size - 1).bit_length())

    @property
    def l2_sensitivity(self) -> float:
        """No client's integers have a larger L2 norm, before noise."""
        return math.sqrt(
            rounded_squared_norm(self.clip_norm * self.scale, size=self.padded, beta=self.beta)
        )

    @property
    def l1_sensitivity(self) -> float:
        """No client's integers have a larger L1 norm: by Cauchy, and since |k| <= k^2."""
        l2 = self.l2_sensitivity
        return min(math.sqrt(self.padded) * l2, l2 * l2)

    def encode(
        self,
        update: Float32,
        *,
        noise: Integers,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Integers:
        """The client's part: int64 [padded] in [0, 2^bits).

        Args:
          update: float32 [size]; clipped here, a non-finite one counts as zero.
          noise: int64 [padded], of `integer_noise`.
          random_bytes: key of the rounding's coins; only tests replace it.

        Raises ValueError on another shape.
        """
        if update.shape != (self.size,) or noise.shape != (self.padded,):
            raise ValueError(
                f"update {update.shape} and noise {noise.shape} must be "
                f"({self.size},) and ({self.padded},)"
            )
        clipped = clip_by_global_norm(update, clip_norm=self.clip_norm).astype(np.float64)
        turned = rotate(clipped, padded=self.padded, seed=self.rotation_seed)
        rounded = round_within(turned * self.scale, norm=self.l2_sensitivity, random=random_bytes)
        return (rounded + noise) % (1 << self.bits)

    def add(self, total: Integers, part: Integers) -> Integers:
        """The sum of two parts, wrapped; any order gives the same."""
        return (total + part) % (1 << self.bits)

    def decode(self, total: Integers) -> Float32:
        """The server's part: the sum of the updates and the noise, float32 [size]."""
        if total.shape != (self.padded,):
            raise ValueError(f"total {total.shape} must be ({self.padded},)")
        half = 1 << (self.bits - 1)
        signed = (total + half) % (1 << self.bits) - half
        turned = signed / self.scale
        return rotate_back(turned, size=self.size, seed=self.rotation_seed).astype(np.float32)

    def wrapping_deviations(self, *, clients: int, noise_variance: float) -> float:
        """How many standard deviations of a sum's entry fit before it wraps.

        After rotation the updates of `clients` clients have about a variance of
        (clients * clip_norm * scale)^2 / padded at most, rounding up to clients / 4;
        `noise_variance` is that of the sum's noise, in integers.
        """
        signal = (clients * self.clip_norm * self.scale) ** 2 / self.padded
        return float((1 << (self.bits - 1)) / math.sqrt(signal + clients / 4 + noise_variance))


def fitting_scale(
    *, size: int, clip_norm: float, bits: int, clients: int, noise_stddev: float, deviations: float
) -> float:
    """The scale with which `IntegerSum.wrapping_deviations` is `deviations` (2102.06387, 4.4).

    Args:
      size: entries of an update, >= 1.
      clip_norm: as of the sum.
      bits: as of the sum.
      clients: at most in a sum, >= 1.
      noise_stddev: of one entry of the sum, in units of the update, >= 0.
      deviations: > 0; about 4 lets one entry in 10,000 wrap.

    Raises ValueError when the bits are too few for any scale.
    """
    padded = 1 << (size - 1).bit_length()
    room = (2.0 ** (bits - 1) / deviations) ** 2 - clients / 4
    if not room > 0:
        raise ValueError(
            f"bits={bits} are too few for {clients} clients at {deviations:g} deviations: take more"
        )
    return math.sqrt(room / ((clients * clip_norm) ** 2 / padded + noise_stddev**2))


def rounded_squared_norm(norm: float, *, size: int, beta: float) -> float:
    """Bound on the squared L2 norm after conditional stochastic rounding (2102.06387, 4.1).

    Args:
      norm: L2 norm before, >= 0.
      size: entries, >= 1.
      beta: in [0, 1); 0 gives the bound that always holds.
    """
    always = (norm + math.sqrt(size)) ** 2
    if beta == 0:
        return always
    tail = math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(size) / 2)
    return min(always, norm**2 + size / 4 + tail)


def round_within(
    values: NDArray[np.float64], *, norm: float, random: Callable[[int], bytes] = os.urandom
) -> Integers:
    """`values` rounded up or down at random, without bias, tried until within the L2 `norm`.

    Towards zero, which makes no norm larger, after 10,000 tries.
    """
    stream = fresh_key_stream(random)
    whole = np.floor(values)
    rest = values - whole
    limit = norm * norm
    for _ in range(_MOST_TRIES):
        words = np.frombuffer(stream(8 * len(values)), np.uint64) >> np.uint64(11)
        rounded: Integers = whole.astype(np.int64) + (words * 2.0**-53 < rest)
        if int(np.sum(np.square(rounded))) <= limit:
            return rounded
    return np.trunc(values).astype(np.int64)


def rotate(values: NDArray[np.float64], *, padded: int, seed: bytes) -> NDArray[np.float64]:
    """Random signs, then the Walsh-Hadamard transform; the norm stays. float64 [padded]."""
    turned = np.zeros(padded)
    turned[: len(values)] = values
    return _walsh_hadamard(turned * _signs(padded, seed))


def rotate_back(values: NDArray[np.float64], *, size: int, seed: bytes) -> NDArray[np.float64]:
    """Undoes `rotate`: the first `size` entries of what was turned."""
    turned: NDArray[np.float64] = _walsh_hadamard(values) * _signs(len(values), seed)
    return turned[:size]


def _signs(size: int, seed: bytes) -> NDArray[np.float64]:
    """+1 or -1 for each entry, from SHAKE-256 of the seed."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(seed).digest(-(-size // 8)), np.uint8))
    return 1.0 - 2.0 * bits[:size]


def _walsh_hadamard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The orthonormal transform, its own inverse; the length is a power of two."""
    size, step = len(values), 1
    turned = values
    while step < size:
        pairs = turned.reshape(-1, 2, step)
        turned = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
        step *= 2
    return turned / math.sqrt(size)
