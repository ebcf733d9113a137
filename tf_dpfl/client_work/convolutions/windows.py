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

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.client_work.convolutions.image_ops import TENSORFLOW, ImageOps, T

# Shorter runs of floats are copied in two stages, of which the first one joins
# the pixels that a row of the window meets: fewer and longer copies.
_SHORT_RUN = 8

# So many slices of a row cost less than gathering what its windows meet: of 1088 rows with
# 14 windows of 8 pixels each, four slices take 30 microseconds, 56 gathered pairs 90.
_MOST_SLICES = 8


# Places that one list has at most, 4 bytes each in a file, for all images of a batch: more are
# found row by row, by a list for the rows and one for what lies in a row of windows.
_MOST_PLACES = 4096


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

    @property
    def behind(self) -> Axis:
        """The window over the outputs that each pixel is met through, for a stride of 1."""
        before = (self.kernel - 1) * self.dilation - self.before
        return Axis(self.outputs, self.size, self.kernel, 1, self.dilation, before)

    def inside(self, size: int) -> Axis:
        """The same windows over an image of `size`, which has the padding."""
        before = min(self.before, 0)
        return Axis(size, self.outputs, self.kernel, self.stride, self.dilation, before)

    @property
    def step(self) -> int:
        """Pixels that windows start and end at multiples of, counted from the first one read."""
        if self.dilation > 1 or self.before < 0:
            return 1
        return math.gcd(self.stride, self.kernel)

    def runs(self, length: int) -> NDArray[np.int32]:
        """[outputs, kernel / length]: for each window the runs of `length` pixels it reads.

        Numbers of runs from the first pixel of the image or its padding; `length`
        is a divisor of kernel and stride, or 1.
        """
        skipped = max(-self.before, 0) // length
        starts = np.arange(self.outputs) * (self.stride // length) + skipped
        taps = np.arange(self.kernel // length) * self.dilation
        return np.asarray(starts[:, np.newaxis] + taps, np.int32)


def padded(
    image: T, rows: Axis, columns: Axis, *, ops: ImageOps[T] = TENSORFLOW
) -> tuple[T, Axis, Axis]:
    """`image` [B, H, W, C] with the zeros that windows read around it, and their axes over it."""
    _, height, width, _ = ops.shape(image)
    top, left = max(rows.before, 0), max(columns.before, 0)
    bottom, right = max(rows.after, 0), max(columns.after, 0)
    right += -(left + width + right) % columns.step
    if top or bottom or left or right:
        image = ops.pad(image, [[0, 0], [top, bottom], [left, right], [0, 0]])
    return image, rows.inside(top + height + bottom), columns.inside(left + width + right)


def patches(image: T, rows: Axis, columns: Axis, *, ops: ImageOps[T] = TENSORFLOW) -> T:
    """[B, T, kh * kw * C]: what each of the T windows over `image` [B, H, W, C] meets.

    Row by row in T and, as a kernel [kh, kw, C, ...] has them, in the last axis.
    """
    image, rows, columns = padded(image, rows, columns, ops=ops)
    batch, height, width, channels = ops.shape(image)
    length = columns.step
    per_row, run = width // length, length * channels
    in_row, in_column = columns.runs(length), rows.runs(1)
    if run < _SHORT_RUN and rows.kernel > 1 and columns.kernel > length:
        windows = _windows_side_by_side(in_row)
        meets = columns.kernel * channels
        if windows is None:
            image = ops.reshape(image, [batch * height, per_row, run])
            image = ops.gather(image, in_row.reshape(-1))
            in_row = np.arange(columns.outputs, dtype=np.int32)[:, np.newaxis]
        else:
            lines = ops.reshape(image, [batch * height, per_row * run])
            pieces = [
                ops.cut(lines, [0, in_row[w[0], 0] * run], [batch * height, len(w) * meets])
                for w in windows
            ]
            image = ops.join(pieces, 1)
            in_row = np.argsort(np.concatenate(windows))[:, np.newaxis]
        per_row, run = columns.outputs, meets
    bands = batch
    if in_column.size * in_row.size > _MOST_PLACES:
        image = _picked(image, [batch, height, per_row * run], in_column, ops)
        bands, height = batch * rows.outputs, rows.kernel
        in_column = np.arange(height, dtype=np.int32)[np.newaxis]
    places = (
        in_column[:, np.newaxis, :, np.newaxis] * per_row + in_row[np.newaxis, :, np.newaxis, :]
    )
    image = _picked(image, [bands, height * per_row, run], places, ops)
    size = rows.kernel * columns.kernel * channels
    return ops.reshape(image, [batch, rows.outputs * columns.outputs, size])


def _picked(values: T, shape: Sequence[int], places: NDArray[np.int32], ops: ImageOps[T]) -> T:
    """`places` of the second axis of `values` in `shape`; as they are where these are all."""
    flat = np.asarray(places.reshape(-1), np.int32)
    if np.array_equal(flat, np.arange(shape[1])):
        return values
    return ops.gather(ops.reshape(values, shape), flat)


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
