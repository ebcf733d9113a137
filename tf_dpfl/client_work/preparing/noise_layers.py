"""The Dropout family and noise layers, with uniforms that are fed in."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import replacement_of
from tf_dpfl.protocol.errors import ModelError

_LAYERS = tf.keras.layers
_SPATIAL = (_LAYERS.SpatialDropout1D, _LAYERS.SpatialDropout2D, _LAYERS.SpatialDropout3D)

# The negative saturation of SELU (Klambauer et al. 1706.02515), scale times alpha.
_SELU_SATURATION = -1.0507009873554805 * 1.6732632423543772


class _FedLayer(tf.keras.layers.Layer):
    """A layer that acts in training only, on what `_perturb` makes of its input."""

    def __init__(self, original: Any, source: RandomSource):
        super().__init__(name=original.name)
        self.supports_masking = True
        self._original, self._source = original, source

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`inputs`, perturbed in training."""
        return self._perturb(inputs) if training else tf.identity(inputs)

    def _perturb(self, inputs: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def _mask_shape(self, inputs: tf.Tensor) -> list[int]:
        """The shape of one example's mask: sizes of 1 are shared."""
        shape, layer = inputs.shape.as_list(), self._original
        noise_shape = list(getattr(layer, "noise_shape", None) or [None] * len(shape))
        if isinstance(layer, _SPATIAL):
            first = getattr(layer, "data_format", "channels_last") == "channels_first"
            channels = 1 if first else len(shape) - 1
            noise_shape = [None if axis in (0, channels) else 1 for axis in range(len(shape))]
        if noise_shape[0] is not None:
            raise ModelError(
                f"layer {self.name} ({type(layer).__name__}): its noise_shape draws one mask for "
                "the whole batch; leave the first entry None"
            )
        return [size if own is None else int(own) for own, size in zip(noise_shape, shape)][1:]


class _Dropout(_FedLayer):
    def _perturb(self, inputs: tf.Tensor) -> tf.Tensor:
        rate = float(self._original.rate)
        uniforms = self._source.uniforms(inputs, self._mask_shape(inputs))
        return dropped(inputs, uniforms, rate=rate)


def dropped(inputs: tf.Tensor, uniforms: tf.Tensor, *, rate: float) -> tf.Tensor:
    """`inputs` without those entries whose uniform is below `rate`, the others scaled up."""
    return inputs * (tf.cast(uniforms >= rate, inputs.dtype) * (1.0 / (1.0 - rate)))


class FedGenerator:
    """In the place of the generator inside Keras' recurrent cells and attention."""

    def __init__(self, source: RandomSource):
        self._source = source

    def dropout(self, inputs: tf.Tensor, rate: float) -> tf.Tensor:
        """`inputs`, float32 [B, ...], with Dropout of `rate`."""
        uniforms = self._source.uniforms(inputs, inputs.shape.as_list()[1:])
        return dropped(inputs, uniforms, rate=rate)


class _AlphaDropout(_FedLayer):
    def _perturb(self, inputs: tf.Tensor) -> tf.Tensor:
        rate = float(self._original.rate)
        uniforms = self._source.uniforms(inputs, self._mask_shape(inputs))
        kept = tf.cast(uniforms >= rate, inputs.dtype)
        scale = ((1 - rate) * (1 + rate * _SELU_SATURATION**2)) ** -0.5
        shift = -scale * _SELU_SATURATION * rate
        return scale * (inputs * kept + _SELU_SATURATION * (1.0 - kept)) + shift


class _GaussianDropout(_FedLayer):
    def _perturb(self, inputs: tf.Tensor) -> tf.Tensor:
        rate = float(self._original.rate)
        normals = self._source.normals(inputs, inputs.shape[1:])
        return inputs * (1.0 + math.sqrt(rate / (1.0 - rate)) * normals)


class _GaussianNoise(_FedLayer):
    def _perturb(self, inputs: tf.Tensor) -> tf.Tensor:
        normals = self._source.normals(inputs, inputs.shape[1:])
        return inputs + float(self._original.stddev) * normals


def _replace(layer: Any, source: RandomSource) -> Any:
    kinds = (
        (_LAYERS.Dropout, "rate", _Dropout),
        (_LAYERS.AlphaDropout, "rate", _AlphaDropout),
        (_LAYERS.GaussianDropout, "rate", _GaussianDropout),
        (_LAYERS.GaussianNoise, "stddev", _GaussianNoise),
    )
    for layer_class, strength, fed in kinds:
        if isinstance(layer, layer_class):
            return fed(layer, source) if getattr(layer, strength) else layer
    raise TypeError(type(layer).__name__)


replacement_of(
    _LAYERS.Dropout, _LAYERS.AlphaDropout, _LAYERS.GaussianDropout, _LAYERS.GaussianNoise
)(_replace)
