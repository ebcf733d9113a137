"""On which side of the exact epsilon the closed form rounds: never below it."""

import math

import mpmath

from tf_dpfl.protocol.gaussian import gaussian_epsilon


def exact_epsilon(*, noise_multiplier: float, delta: float, near: float) -> mpmath.mpf:
    """The root of Balle & Wang's delta(epsilon), theorem 8, in 60 digits, next to `near`."""
    with mpmath.workdps(60):
        mu = 1 / mpmath.mpf(noise_multiplier)

        def excess(epsilon):
            first = mpmath.ncdf(mu / 2 - epsilon / mu)
            return first - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu) - delta

        return mpmath.findroot(excess, mpmath.mpf(near))


def test_epsilon_is_rounded_up_and_never_down():
    """The search ends 1e-12 wide: its lower end lies below the truth, its upper end above."""
    for step in range(40):
        noise, delta = 0.4 * 1.1**step, 10.0 ** -(3 + step % 7)
        epsilon = gaussian_epsilon(noise_multiplier=noise, delta=delta)
        exact = exact_epsilon(noise_multiplier=noise, delta=delta, near=epsilon)
        above = float((mpmath.mpf(epsilon) - exact) / exact)
        # Double rounding of delta itself moves epsilon by some 1e-14.
        assert -5e-14 <= above <= 2e-12, (noise, delta, above)
        assert math.isfinite(epsilon)
