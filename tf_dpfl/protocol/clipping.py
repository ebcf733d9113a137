"""Clipping a client's whole update to an L2 norm, in one of three ways: the NumPy reference.

`client_work.update` does the same inside TensorFlow and TFLite; tests hold the
two together. All three bound the same norm, so that noise and accounting do not depend
on the way:
  * "global": the update is scaled as a whole;
  * "per_layer": each of L trainable variables is scaled to `clip_norm` / sqrt(L);
  * "value": each of d entries is cut to +- `clip_norm` / sqrt(d).

Formal guarantees, for every way and every input (NaN, infinities and zeros included):
  * the float64 L2 norm of the result is at most `clip_norm`;
  * an update with a non-finite squared norm becomes the zero update, so a
    broken client has no influence instead of unbounded influence;
  * a finite update, variable or entry within (1 - CLIP_MARGIN) of its own bound is unchanged.
"""

from __future__ import annotations

import math

import numpy as np

from tf_dpfl.protocol.checks import require_finite_positive
from tf_dpfl.protocol.tensors import Float32, TensorLayout

# Float32 rounding of norm, factor and product adds up to a few 1e-7, and the
# rounding of a sum of d squares to about sqrt(d) times 6e-8 (pairwise sums
# less): the target norm stays this fraction below the bound, which keeps the
# bound exact for vectors of up to about 10^8 entries.
CLIP_MARGIN = 1e-5

LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))
"""From this norm on an update counts as broken: its square overflows float32."""

SMALLEST_NORM = 1e-19
"""Up to this norm squares leave float32's normal numbers: taken for the norm of what is shorter."""


def bound_of_a_part(*, clip_norm: float, clipping: str, layout: TensorLayout) -> float:
    """The bound on what is clipped by itself: the update, a variable's norm, or an entry."""
    parts = {"global": 1, "per_layer": len(layout.shapes), "value": layout.size}[clipping]
    return clip_norm / math.sqrt(max(parts, 1))


def clip_update(
    update: Float32, *, clip_norm: float, clipping: str, layout: TensorLayout
) -> Float32:
    """Clips `update` (shape [d], float32) to L2 norm at most `clip_norm`.

    Args:
      update: flat, as `layout` says; left as it is.
      clip_norm: finite and > 0.
      clipping: "global", "per_layer" or "value".
      layout: where each variable is.

    Raises ValueError unless `clip_norm` is finite and > 0 and `update` has the layout's
    size; KeyError for another way. Source: McMahan et al. 2018 (1710.06963, section 2.3),
    "flat" and "per-layer" clipping.
    """
    if clipping == "global":
        return clip_by_global_norm(update, clip_norm=clip_norm)
    require_finite_positive("clip_norm", clip_norm)
    bound = bound_of_a_part(clip_norm=clip_norm, clipping=clipping, layout=layout)
    variables = layout.split(update)
    if not float(np.linalg.norm(update.astype(np.float64))) < LARGEST_NORM:
        return np.zeros_like(update)
    if clipping == "per_layer":
        return layout.join(
            [clip_by_global_norm(v.ravel(), clip_norm=bound).reshape(v.shape) for v in variables]
        )
    largest = np.float32(bound * (1.0 - CLIP_MARGIN))
    return np.clip(update, -largest, largest)


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
