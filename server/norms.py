"""Norms: how long an update may be before the server adds it."""

from __future__ import annotations

import numpy as np

from tf_dpfl.protocol.clipping import LARGEST_NORM, clip_by_global_norm
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.plan import Privacy
from tf_dpfl.protocol.tensors import Float32

# A device clips in float32: what it calls clip_norm may be longer by its rounding.
_ROUNDING = 1e-6


def bounded_update(vector: Float32, privacy: Privacy) -> Float32:
    """A device's finite update, float32 [d], as it may be added.

    With `noise = "server"` the epsilon rests on every update's norm being at
    most clip_norm, and nobody else can see to it: a longer one is refused, one
    longer by a rounding error only is clipped again, so that the bound is
    exact. With noise on devices a report is clip_norm plus noise; there the
    device's own check bounds the update, and only a report so long that the
    model could not stay finite is refused.

    Raises WireError 422.
    """
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if privacy.noise != "server":
        if not norm < LARGEST_NORM:
            raise _too_long(norm, f"below {LARGEST_NORM:.3g}, what an update can be")
        return vector
    if not norm <= privacy.clip_norm * (1.0 + _ROUNDING):
        raise _too_long(norm, f"at most clip_norm={privacy.clip_norm:g}; clip it")
    if norm > privacy.clip_norm:
        return clip_by_global_norm(vector, clip_norm=privacy.clip_norm)
    return vector


def _too_long(norm: float, allowed: str) -> WireError:
    return WireError(
        f"update: its norm {norm:.7g} must be {allowed}; nothing was added", status=422
    )
