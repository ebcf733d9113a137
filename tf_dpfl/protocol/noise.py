"""Gaussian noise that protects somebody, its scale, and uniforms for Dropout.

Every call takes a fresh 256-bit key from `os.urandom` and expands it with
ChaCha20; nothing is kept between calls, so a fork or a second thread cannot see
a stream again, and a key that leaks later tells nothing of other calls. ChaCha20
and not AES: its software form takes constant time on processors without AES
instructions too. A call may draw 2^38 bytes, 8 billion values.

Each value is the sum of four Box-Muller draws from uniforms of at least 53 bits in
float64, rounded once to float32. A single float Gaussian has reachable and unreachable
values an attacker can tell apart (Jin et al., 2112.05307); the sum of four hides
them (Holohan & Braghin, 2107.10138). Not covered: the time a call takes, the
rounding of `update + noise`, and copies of the noise left in freed memory;
`docs/privacy.md` says more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from tf_dpfl.protocol.checks import require_finite_nonnegative, require_finite_positive
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.tensors import Float32

DRAWS_PER_VALUE = 4

_KEY_BYTES = 32
_WORD_BYTES = 8
# Values computed at once: few calls, and words and floats stay in the processor's cache.
_CHUNK = 4096


def noise_stddev_of_sum(*, clip_norm: float, noise_multiplier: float) -> float:
    """Standard deviation, per coordinate, that the sum of reports must carry."""
    require_finite_positive("clip_norm", clip_norm)
    require_finite_nonnegative("noise_multiplier", noise_multiplier)
    return clip_norm * noise_multiplier


def noise_stddev_of_share(
    *, clip_norm: float, noise_multiplier: float, smallest_cohort: int
) -> float:
    """Standard deviation, per coordinate, of one device's share.

    The shares of `smallest_cohort` reports add up to `noise_stddev_of_sum`;
    more reports carry more.
    """
    if not smallest_cohort >= 1:
        raise ValueError(f"smallest_cohort={smallest_cohort!r} must be >= 1")
    total = noise_stddev_of_sum(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    return total / math.sqrt(smallest_cohort)


def gaussian_noise(
    size: int, *, stddev: float, random_bytes: Callable[[int], bytes] = os.urandom
) -> Float32:
    """Independent N(0, stddev^2) values of shape [size], float32.

    Args:
      size: number of values, >= 0.
      stddev: finite and >= 0; 0 gives exact zeros.
      random_bytes: gives the 32 bytes of the key; only tests replace it.

    Raises:
      OSError: the operating system has no entropy.
      StateError: `random_bytes` gave fewer or more bytes than asked for.
    """
    noise = np.empty(size, np.float32)
    fill_with_noise([noise], stddev=stddev, random_bytes=random_bytes)
    return noise


def fill_with_noise(
    parts: Sequence[Float32] | Sequence[NDArray[np.float64]],
    *,
    stddev: float,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> None:
    """Fills arrays, in place, with what `gaussian_noise` draws for all of them together.

    Args:
      parts: float32 arrays of any shapes, each contiguous; float64 ones take the values as
        they are computed, without the last rounding.
      stddev, random_bytes: as for `gaussian_noise`.

    Raises:
      ValueError: a part is not contiguous.
      OSError, StateError: as `gaussian_noise`.
    """
    require_finite_nonnegative("stddev", stddev)
    if stddev == 0:
        for part in parts:
            part.fill(0)
        return
    targets = []
    for part in parts:
        if not part.flags.c_contiguous:  # a copy would be filled in its place
            raise ValueError(f"a part of shape {part.shape} is not contiguous; pass whole arrays")
        targets.append(part.reshape(-1))
    size = sum(map(len, targets))
    encryptor = _fresh_encryptor(random_bytes)
    scale = stddev / math.sqrt(DRAWS_PER_VALUE)
    workspace = _workspace(min(size, _CHUNK))
    words = np.empty(workspace[:2].shape, np.uint64)
    zeros = bytes(words.nbytes)
    rest = iter(targets)
    target = next(rest, np.empty(0, np.float32))
    for start in range(0, size, _CHUNK):
        count = min(size - start, _CHUNK)
        if count < _CHUNK:
            workspace = _workspace(count)
            words = np.empty(workspace[:2].shape, np.uint64)
        # Into memory that stays: taking new memory for each chunk costs a tenth of the time.
        encryptor.update_into(zeros[: words.nbytes], words.data.cast("B"))
        values = _box_muller(words, workspace).sum(axis=1).ravel()[:count]
        while len(values):
            n = min(len(values), len(target))
            # Computed in float64 and rounded once, on the way into `target`.
            np.multiply(values[:n], scale, out=target[:n], casting="same_kind")
            values, target = values[n:], target[n:]
            if not len(target):
                target = next(rest, target)


def uniforms(size: int, random_bytes: Callable[[int], bytes] = os.urandom) -> Float32:
    """Independent uniform values in [0, 1) of shape [size], float32, of 24 bits each.

    Raises as `gaussian_noise` does.
    """
    raw = np.frombuffer(fresh_key_stream(random_bytes)(4 * size), np.uint32)
    return (raw >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def fresh_key_stream(random_bytes: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """A function that gives the next n bytes of ChaCha20 under a fresh key.

    Raises as `gaussian_noise` does.
    """
    encryptor = _fresh_encryptor(random_bytes)
    return lambda count: encryptor.update(bytes(count))


def _fresh_encryptor(random_bytes: Callable[[int], bytes]) -> Any:
    """ChaCha20 under a fresh key: what it makes of zeros is the stream."""
    key = random_bytes(_KEY_BYTES)
    if len(key) != _KEY_BYTES:
        raise StateError(
            f"the source of entropy gave {len(key)} bytes instead of {_KEY_BYTES}; no noise is "
            "made from less"
        )
    # Counter and nonce start at zero: the key is used for one stream alone.
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


def _workspace(values: int) -> NDArray[np.float64]:
    """Room for `_box_muller` to make `values` values, two of each pair."""
    return np.empty((3, DRAWS_PER_VALUE, (values + 1) // 2))


def _box_muller(words: NDArray[np.uint64], workspace: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normals of the shape of `words`, [2, ...] (Box & Muller 1958).

    `words[0]` gives the radius, `words[1]` the angle. Cosine and sine are those
    of twice the angle whose tangent is taken: one slow function instead of two.
    Everything happens inside `workspace`, [3, ...]; the result is its first two parts.
    """
    radius, tangent, room = workspace
    # The upper 53 bits, the precision of float64; signed integers convert faster.
    np.right_shift(words[0], np.uint64(11), out=room.view(np.uint64))
    np.copyto(radius, room.view(np.int64))
    radius += 1.0
    radius *= 2.0**-53  # in (0, 1]: the logarithm is finite
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    # As a signed number all 64 bits; float64 rounds them to 53 or finer.
    np.copyto(tangent, words[1].view(np.int64))
    tangent *= math.pi * 2.0**-64  # half the angle, in [-pi/2, pi/2]
    np.tan(tangent, out=tangent)  # at most 1.7e16: finite
    # cos = 2 / (1 + tan^2) - 1 and sin = 2 tan / (1 + tan^2) of twice that angle.
    np.square(tangent, out=room)
    room += 1.0
    np.divide(radius, room, out=room)
    room *= -2.0  # both with the other sign: half a turn, which changes no distribution
    radius += room
    tangent *= room
    return workspace[:2]
