"""The Dropout family and noise layers, with uniforms that are fed in."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.preparing.randomness import RandomSource
from tf_dpfl.client_work.preparing.replacements import replacement_of
from tf_dpfl.protocol.errors import ModelError

_LAYERS = tf.keras.layers

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
        """The shape of one example's mask, from Keras' noise_shape."""
        noise_shape = self._original._get_noise_shape(inputs)
        if noise_shape is None:
            return list(inputs.shape[1:])
        sizes = [tf.get_static_value(size) for size in tf.nest.flatten(noise_shape)]
        if len(sizes) == 1 and isinstance(noise_shape, tf.Tensor):
            sizes = list(tf.get_static_value(noise_shape))
        if sizes[0] == 1 != inputs.shape[0]:
            raise ModelError(
                f"layer {self.name} ({type(self._original).__name__}): its noise_shape draws one "
                "mask for the whole batch; leave the first entry None"
            )
        return [int(inputs.shape[i] if size is None else size) for i, size in enumerate(sizes)][1:]


class _Dropout(_FedLayer):
    def _perturb(self, inputs: tf.Tensor) -> tf.Tensor:
        rate = float(self._original.rate)
        uniforms = self._source.uniforms(inputs, self._mask_shape(inputs))
        return inputs * (tf.cast(uniforms >= rate, inputs.dtype) * (1.0 / (1.0 - rate)))


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
