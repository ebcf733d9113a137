"""The TFLite signatures of `client.tflite`: names, inputs and outputs.

d is the size of the flat weight vector, B the batch size of the manifest.
"""

from __future__ import annotations

TRAIN = "train"
"""One local step on one batch.

Inputs: `x` float32 [B, ...], `y` int32 [B], `weight` float32 [B] (1 for an
example, 0 for padding), `learning_rate` float32 []. Output: `loss` float32 [],
the weighted mean loss of the batch, which is private and stays on the device.
"""

PRIVATIZE_UPDATE = "privatize_update"
"""The report: clip(current weights - `initial`) + `noise`.

Inputs: `initial` float32 [d], `clip_norm` float32 [], `noise` float32 [d]
(already scaled to the share's standard deviation). Output: `update` float32 [d].
"""

INFER = "infer"
"""Input: `x` float32 [n, ...]. Output: `logits` float32 [n, classes]."""

GET_WEIGHTS = "get_weights"
"""Output: `weights` float32 [d]."""

SET_WEIGHTS = "set_weights"
"""Input: `weights` float32 [d]; also resets the local optimizer's state.

Output: `size` int32 [], the number of weights. Must be called first: what a
file holds before is not specified.
"""

ALL = (TRAIN, PRIVATIZE_UPDATE, INFER, GET_WEIGHTS, SET_WEIGHTS)
