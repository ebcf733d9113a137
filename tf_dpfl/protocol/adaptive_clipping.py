"""How a round's noise is split between its updates and the count that steers the clip norm.

A round with adaptive clipping (Andrew et al. 1905.03871) releases two things: the noised sum
of the clipped updates, and a noised count of the updates that were not clipped. Each user
adds +1/2 to the count where it was not clipped and -1/2 where it was, so that its presence
moves the count by 1/2 and the sum by one clip norm. Both divided by their noise are one
Gaussian vector, and one Gaussian mechanism: the plan's noise multiplier z is that of both
together, z^-2 = (noise multiplier of the updates)^-2 + (2 * deviation of the count)^-2.
"""

from __future__ import annotations

_DEFAULT_COUNT_STDDEV = 1 / 20  # of the cohort (1905.03871, section 3.1)


def clip_count_stddev_of(
    set_to: float | None, *, noise_multiplier: float, clients_per_round: int
) -> float:
    """Deviation of the noise on the count: as set, else a twentieth of the expected cohort.

    Without any noise (`noise_multiplier` 0) it is 0 unless it is set.
    """
    if set_to is not None:
        return set_to
    return clients_per_round * _DEFAULT_COUNT_STDDEV if noise_multiplier > 0 else 0.0


def fault_of_noise(noise_multiplier: float, clip_count_stddev: float) -> str | None:
    """Why no noise on the updates makes both releases one of `noise_multiplier`, or None."""
    if noise_multiplier == 0 or noise_multiplier < 2 * clip_count_stddev:
        return None
    return (
        f"privacy.noise_multiplier={noise_multiplier:g} must be below "
        f"2 * clip_count_stddev={2 * clip_count_stddev:g}: the count of updates that are not "
        "clipped would alone tell more than both releases of a round may; set "
        f"privacy.clip_count_stddev to {noise_multiplier:.3g} or more, or raise "
        "clients.clients_per_round"
    )


def noise_multiplier_of_updates(*, noise_multiplier: float, clip_count_stddev: float) -> float:
    """Noise on the sum of updates, over the clip norm, that makes both releases one of z.

    Args:
      noise_multiplier: z of both releases together, >= 0; 0 gives 0.
      clip_count_stddev: deviation of the noise on the count; above z / 2 unless z is 0.

    Raises ValueError when no noise does. Source: Andrew et al. 1905.03871, theorem 1.
    """
    if fault := fault_of_noise(noise_multiplier, clip_count_stddev):
        raise ValueError(fault)
    if noise_multiplier == 0:
        return 0.0
    ratio = noise_multiplier / (2 * clip_count_stddev)
    return float(noise_multiplier / ((1 - ratio) * (1 + ratio)) ** 0.5)
