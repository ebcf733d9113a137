"""The scale of a local step of DP-SGD, from a plan's numbers alone: no array is needed.

`private_step` says what a step is; plans are checked by these before anything is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_dpfl.protocol.plan import LocalTraining

# Below, the entries of what is clipped and noised leave float32's normal numbers.
_SMALLEST_SENSITIVITY = 1e-30


def rate_before_noise(settings: LocalTraining) -> bool:
    """Whether a is made of the learning rate: the noised step is what the weights move by."""
    return settings.optimizer == "sgd" and not settings.proximal


def scale_of_gradients(settings: LocalTraining) -> float:
    """a, what a gradient that is not clipped is multiplied with before the noise."""
    rate = settings.learning_rate if rate_before_noise(settings) else 1.0
    return rate / settings.batch_size


def faults_of_sensitivity(plan: Any) -> list[str]:
    """Why the steps of a plan are too small for float32; `plan` as in `contradictions`."""
    training, privacy = plan.local_training, plan.privacy
    if privacy.unit != "example":
        return []
    sensitivity = scale_of_gradients(training) * privacy.clip_norm
    if sensitivity >= _SMALLEST_SENSITIVITY:
        return []
    return [
        f"local_training.learning_rate={training.learning_rate:g} and privacy.clip_norm="
        f"{privacy.clip_norm:g}: one example would change a step by at most {sensitivity:g}, which "
        f"float32 noise can not hide; it must be at least {_SMALLEST_SENSITIVITY:g}"
    ]
