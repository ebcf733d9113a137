"""The geometry of sliding windows over images, and what each window meets.

What all windows meet is a matrix, and a convolution is its product with the
kernel: forward, for the kernel's gradient and for the gradient of each example.
The matrix is made by GATHER, whose rows are copied whole: an interpreter takes a
fifth of the time that slicing and joining takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# Shorter runs of floats are copied in two stages, of which the first one joins
# the pixels that a row of the window meets: fewer and longer copies.
_SHORT_RUN = 8

# So many slices of a row cost less than gathering what its windows meet: of 1088 rows with
# 14 windows of 8 pixels each, four slices take 30 microseconds, 56 gathered pairs 90.
_MOST_SLICES = 8

# Rows of patches that one product of matrices takes at most, unless an image has more: with
# fewer its start counts, with more its factors leave the cache. Products of 196 rows by
# 64 x 16 take 200 microseconds for 32 images, of 784 rows 177 (tflite-runtime 2.14).
_MOST_ROWS = 784


@dataclass(frozen=True)
class Axis:
    """One axis of a sliding window: sizes in pixels.

    `before` is the padding in front of the image (negative: pixels that are
    skipped); `after`, behind it, is negative where the last pixels are in no
    window.
    """

    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def extent(self) -> int:
        """Pixels from the first to the last a window reads."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> int:
        """Pixels that all windows together read, padding included."""
        return (self.outputs - 1) * self.stride + self.extent

    @property
    def after(self) -> int:
        """Padding behind the image; negative: pixels cut off."""
        return self.padded - self.size - self.before

    def reads(self, tap: int) -> slice:
        """The padded pixels that position `tap` of the kernel meets."""
        start = tap * self.dilation
        return slice(start, start + (self.outputs - 1) * self.stride + 1, self.stride)

    def places(self, tap: int) -> list[int]:
        """The same pixels one by one."""
        return list(range(self.padded))[self.reads(tap)]

    def together(self, windows: int) -> Axis:
        """Every `windows` neighbouring windows, which divide their number, as one."""
        if windows == 1:
            return self
        kernel = self.kernel + (windows - 1) * self.stride
        stride, outputs = windows * self.stride, self.outputs // windows
        return Axis(self.size, outputs, kernel, stride, self.dilation, self.before)

    def runs(self, length: int) -> NDArray[np.int32]:
        """[outputs, kernel / length]: for each window the runs of `length` pixels it reads.

        Numbers of runs from the first pixel of the image or its padding; `length`
        is a divisor of kernel and stride, or 1.
        """
        skipped = max(-self.before, 0) // length
        starts = np.arange(self.outputs) * (self.stride // length) + skipped
        taps = np.arange(self.kernel // length) * self.dilation
        return np.asarray(starts[:, np.newaxis] + taps, np.int32)


@dataclass(frozen=True)
class Step:
    """One op on the way from images to patches: `kind` is "pad", "reshape", "gather" or "slices".

    `argument`, int32: paddings [4, 2], a shape, indices along axis 1, or [n, 2] for n slices
    along axis 1 of a matrix, first entry and size of each, which are joined there.
    """

    kind: str
    argument: NDArray[np.int32]


def patch_steps(shape: Sequence[int], rows: Axis, columns: Axis) -> list[Step]:
    """The ops that make `patches` of images of the static `shape` [B, H, W, C]."""
    batch, height, width, channels = shape
    length = 1
    if columns.dilation == 1 and not min(columns.before, 0):
        length = math.gcd(columns.stride, columns.kernel)
    top, left = max(rows.before, 0), max(columns.before, 0)
    bottom, right = max(rows.after, 0), max(columns.after, 0)
    right += -(left + width + right) % length
    steps = []

    def step(kind: str, argument: Any) -> None:
        steps.append(Step(kind, np.asarray(argument, np.int32)))

    if top or bottom or left or right:
        step("pad", [[0, 0], [top, bottom], [left, right], [0, 0]])
    height, per_row, run = (
        top + height + bottom,
        (left + width + right) // length,
        length * channels,
    )
    in_row, in_column = columns.runs(length), rows.runs(1)
    if run < _SHORT_RUN and rows.kernel > 1 and columns.kernel > length:
        windows = _windows_side_by_side(in_row)
        if windows is None:
            step("reshape", [batch * height, per_row, run])
            step("gather", in_row.reshape(-1))
            in_row = np.arange(columns.outputs, dtype=np.int32)[:, np.newaxis]
        else:
            step("reshape", [batch * height, per_row * run])
            meets = columns.kernel * channels
            step("slices", [[in_row[w[0], 0] * run, len(w) * meets] for w in windows])
            in_row = np.argsort(np.concatenate(windows))[:, np.newaxis]
        per_row, run = columns.outputs, columns.kernel * channels
    places = (
        in_column[:, np.newaxis, :, np.newaxis] * per_row + in_row[np.newaxis, :, np.newaxis, :]
    )
    if not np.array_equal(places.reshape(-1), np.arange(height * per_row)):
        step("reshape", [batch, height * per_row, run])
        step("gather", places.reshape(-1))
    size = rows.kernel * columns.kernel * channels
    step("reshape", [batch, rows.outputs * columns.outputs, size])
    return steps


def rows_at_once(batch: int, places: int) -> tuple[int, int]:
    """How to cut `batch` x `places` rows up for products with a kernel: (products, rows of each).

    Each product has whole images.
    """
    images = max(
        n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * places <= _MOST_ROWS)
    )
    return batch // images, images * places


def _windows_side_by_side(runs: NDArray[np.int32]) -> list[NDArray[np.int64]] | None:
    """The windows over a row in groups, in each of which the next begins where one ends.

    `runs` [windows, runs of one]; None where there are too many groups, or windows with gaps.
    """
    windows, size = runs.shape
    ahead = int(runs[1, 0] - runs[0, 0]) if windows > 1 else size
    groups = windows if size % ahead else min(size // ahead, windows)
    if groups > _MOST_SLICES or runs[0, -1] - runs[0, 0] != size - 1:
        return None
    return [np.arange(first, windows, groups) for first in range(groups)]


def patches(image: tf.Tensor, rows: Axis, columns: Axis) -> tf.Tensor:
    """[B, T, kh * kw * C]: what each of the T windows over `image` [B, H, W, C] meets.

    Row by row in T and, as a kernel [kh, kw, C, ...] has them, in the last axis.
    """
    return applied(patch_steps(image.shape.as_list(), rows, columns), image)


def applied(steps: Sequence[Step], values: tf.Tensor) -> tf.Tensor:
    """`values` after all `steps`."""
    for step in steps:
        if step.kind == "pad":
            # PadV2, because XNNPACK's PAD takes five times as long as the plain one.
            values = tf.raw_ops.PadV2(
                input=values, paddings=step.argument, constant_values=tf.constant(0.0)
            )
        elif step.kind == "reshape":
            values = tf.reshape(values, step.argument)
        elif step.kind == "slices":
            rows = values.shape[0]
            pieces = [tf.slice(values, [0, a], [rows, n]) for a, n in step.argument]
            values = tf.concat(pieces, axis=1)
        else:
            values = tf.gather(values, step.argument, axis=1)
    return values
