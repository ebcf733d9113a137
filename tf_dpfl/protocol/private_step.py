"""What a local step of DP-SGD adds its noise to, and how much: the NumPy reference.

DP-SGD (Abadi et al. 1607.00133, algorithm 1) with everything before the noise at the
scale that is needed after it, so that no pass over the weights scales the sum again:

    step = sum over i of weight_i * g_i * min(a, m / ||g_i||) + noise,  noise ~ N(0, (z m)^2)

With plain SGD the step is what is taken off the weights, and a = learning rate / B; any
other optimizer takes it for its gradient, and a = 1 / B. B is the public batch size, also
of partial and empty batches. With m = a C each gradient is scaled by a min(1, C / ||g_i||).
`client_work` computes the same in TensorFlow and TFLite; tests hold the two together.

Formal guarantees, for every a, also one from a learning rate that m does not fit:
  * with one example or with zero in its place, the step differs by at most m in L2 norm;
  * an example of weight 0, or whose gradient has no finite squared norm, adds nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.clipping import CLIP_MARGIN, LARGEST_NORM, SMALLEST_NORM
from tf_dpfl.protocol.noise import noise_stddev_of_sum
from tf_dpfl.protocol.step_scale import scale_of_gradients
from tf_dpfl.protocol.tensors import Float32

if TYPE_CHECKING:
    from tf_dpfl.protocol.plan import LocalTraining


def sensitivity_of_step(settings: LocalTraining, *, clip_norm: float) -> float:
    """m = a C, the most one example changes the step in L2 norm: a float32 number.

    What `train_dp` takes as `sensitivity`. `clip_norm` (C) bounds the L2 norm of one
    example's gradient.
    """
    return float(np.float32(scale_of_gradients(settings) * clip_norm))


def noise_stddev_of_step(
    settings: LocalTraining, *, clip_norm: float, noise_multiplier: float
) -> float:
    """z m, the standard deviation of the noise of one step, per coordinate.

    Raises ValueError as `noise.noise_stddev_of_sum`.
    """
    sensitivity = sensitivity_of_step(settings, clip_norm=clip_norm)
    return noise_stddev_of_sum(clip_norm=sensitivity, noise_multiplier=noise_multiplier)


def noised_step(
    gradients: Float32, weight: Float32, *, scale: float, sensitivity: float, noise: Float32
) -> NDArray[np.float64]:
    """The step, float64 [d].

    Args:
      gradients: of each example, [B, d].
      weight: [B], 1 for an example and 0 for padding.
      scale: a; what is not > 0 counts as 0.
      sensitivity: m, finite and >= 0.
      noise: [d], of the standard deviation z m.
    """
    rows = gradients.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    counts = (norms < LARGEST_NORM) & (weight > 0)
    bound = sensitivity * (1.0 - CLIP_MARGIN)
    largest = bound / np.maximum(norms, SMALLEST_NORM)
    factors = weight * np.minimum(scale if scale > 0 else 0.0, largest)
    total: NDArray[np.float64] = factors[counts] @ rows[counts]
    return total + noise
