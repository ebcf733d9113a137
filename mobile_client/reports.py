"""What a device reports of one round: trained, privatized, with noise of its own."""

from __future__ import annotations

from collections.abc import Callable

from mobile_client.trainer import Trainer
from tf_dpfl.protocol.examples import Examples
from tf_dpfl.protocol.manifest import Manifest
from tf_dpfl.protocol.noise import (
    fill_with_noise,
    gaussian_noise,
    noise_stddev_of_share,
    noise_stddev_of_sum,
)
from tf_dpfl.protocol.tensors import Float32


def make_report(
    trainer: Trainer,
    manifest: Manifest,
    *,
    weights: Float32,
    examples: Examples,
    optimizer_state: Float32 | None,
    random_bytes: Callable[[int], bytes],
) -> Float32:
    """The report, float32 [d], with fresh noise: the device's share, or one draw a step.

    Args:
      trainer: of the manifest's client file.
      manifest: the task's; says how much noise.
      weights: the round's, float32 [d].
      examples: the device's own.
      optimizer_state: float32 [s] for plans that keep it, else None.
      random_bytes: what the noise is drawn from.

    Raises TaskError when the file computes something else than it should.
    """
    privacy, size = manifest.plan.privacy, manifest.layout.size
    clip_norm, multiplier = privacy.clip_norm, privacy.calibrated_noise_multiplier
    if privacy.unit == "example":
        of_step = noise_stddev_of_sum(clip_norm=clip_norm, noise_multiplier=multiplier)
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
    return trainer.train_round(
        weights=weights,
        examples=examples,
        noise=gaussian_noise(size, stddev=share, random_bytes=random_bytes),
        optimizer_state=optimizer_state,
        random_bytes=random_bytes,
    )
