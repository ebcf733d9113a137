"""Clipping a client's whole update by its global L2 norm: the NumPy reference.

`client_work.update` does the same inside TensorFlow and TFLite; tests hold the
two together.

Formal guarantees, for every input (NaN, infinities and zeros included):
  * the float64 L2 norm of the result is at most `clip_norm`;
  * an update with a non-finite squared norm becomes the zero update, so a
    broken client has no influence instead of unbounded influence;
  * a finite update of norm at most `clip_norm` * (1 - CLIP_MARGIN) is unchanged.
"""

from __future__ import annotations

import numpy as np

from tf_dpfl.protocol.checks import require_finite_positive
from tf_dpfl.protocol.tensors import Float32

# Float32 rounding of norm, factor and product adds up to a few 1e-7, and the
# rounding of a sum of d squares to about sqrt(d) times 6e-8 (pairwise sums
# less): the target norm stays this fraction below the bound, which keeps the
# bound exact for vectors of up to about 10^8 entries.
CLIP_MARGIN = 1e-5

LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))
"""From this norm on an update counts as broken: its square overflows float32."""


def clip_by_global_norm(update: Float32, *, clip_norm: float) -> Float32:
    """Scales `update` (shape [d], float32) to L2 norm at most `clip_norm`.

    Raises ValueError unless `clip_norm` is finite and > 0. Source: McMahan et
    al. 2018 (1710.06963), "flat clipping".
    """
    bound = require_finite_positive("clip_norm", clip_norm) * (1.0 - CLIP_MARGIN)
    norm = float(np.linalg.norm(update.astype(np.float64)))
    if not norm < LARGEST_NORM:
        return np.zeros_like(update)
    if norm <= bound:
        return update.copy()
    return update * np.float32(bound / norm)
