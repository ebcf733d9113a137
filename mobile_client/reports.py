"""What a device reports of one round: trained, privatized, with noise of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mobile_client.trainer import Trainer
from tf_dpfl.protocol.clip_count import (
    clipped_indicator,
    count_stddev_of_share,
    noised_count,
)
from tf_dpfl.protocol.examples import Examples
from tf_dpfl.protocol.manifest import Manifest
from tf_dpfl.protocol.noise import (
    fill_with_noise,
    gaussian_noise,
    noise_stddev_of_share,
)
from tf_dpfl.protocol.private_step import noise_stddev_of_step
from tf_dpfl.protocol.tensors import Float32


def make_report(
    trainer: Trainer,
    manifest: Manifest,
    *,
    weights: Float32,
    examples: Examples,
    clip_norm: float,
    optimizer_state: Float32 | None,
    random_bytes: Callable[[int], bytes],
) -> Float32:
    """The report, float32 [d], with fresh noise: the device's share, or one draw a step.

    Where the clip norm adapts it has one number more, float32 [d + 1]: whether the update
    was not clipped, with a share of noise of its own.

    Args:
      trainer: of the manifest's client file.
      manifest: the task's; says how much noise.
      weights: the round's, float32 [d].
      examples: the device's own.
      clip_norm: the round's, which the noise follows.
      optimizer_state: float32 [s] for plans that keep it, else None.
      random_bytes: what the noise is drawn from.

    Raises TaskError when the file computes something else than it should.
    """
    plan, size = manifest.plan, manifest.layout.size
    privacy, multiplier = plan.privacy, plan.noise_multiplier_of_updates
    if privacy.unit == "example":
        of_step = noise_stddev_of_step(
            plan.local_training, clip_norm=clip_norm, noise_multiplier=multiplier
        )
        return trainer.train_private_steps(
            weights=weights,
            examples=examples,
            draw_noise=lambda parts: fill_with_noise(
                parts, stddev=of_step, random_bytes=random_bytes
            ),
            optimizer_state=optimizer_state,
            random_bytes=random_bytes,
        )
    share = 0.0
    if privacy.noise == "device":
        share = noise_stddev_of_share(
            clip_norm=clip_norm,
            noise_multiplier=multiplier,
            smallest_cohort=privacy.smallest_cohort,
        )
    update = trainer.train_round(
        weights=weights,
        examples=examples,
        noise=gaussian_noise(size, stddev=share, random_bytes=random_bytes),
        clip_norm=clip_norm,
        optimizer_state=optimizer_state,
        random_bytes=random_bytes,
    )
    if not privacy.adaptive_clipping:
        return update
    count = noised_count(
        clipped_indicator(trainer.norm_of_update(weights), clip_norm=clip_norm),
        stddev=count_stddev_of_share(plan),
        random_bytes=random_bytes,
    )
    return np.append(update, np.float32(count))
