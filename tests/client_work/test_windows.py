"""What the windows of a convolution meet, against TensorFlow's own patches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.convolutions import windows
from tf_dpfl.client_work.convolutions.patch_products import rows_at_once
from tf_dpfl.client_work.convolutions.windows import Axis, padded, patches

# kernel, stride, dilation of rows and of columns; channels. The last of a row are
# runs long enough for one stage, and short ones for two.
WINDOWS = [
    ((3, 3), (1, 1), (1, 1), 3),
    ((3, 3), (1, 1), (1, 1), 16),
    ((8, 8), (2, 2), (1, 1), 1),
    ((4, 4), (2, 2), (1, 1), 8),
    ((2, 2), (2, 2), (1, 1), 8),
    ((1, 1), (1, 1), (1, 1), 2),
    ((1, 1), (2, 2), (1, 1), 2),
    ((2, 3), (3, 1), (1, 1), 2),
    ((3, 2), (1, 1), (2, 3), 2),
    ((1, 5), (1, 4), (1, 1), 1),
    ((3, 5), (2, 4), (1, 1), 1),
    ((2, 9), (1, 1), (1, 1), 1),
    ((2, 12), (1, 1), (1, 1), 1),
    ((2, 6), (1, 4), (1, 1), 1),
]


def axes(
    image: tf.Tensor, padding: str, window: tuple[tuple[int, int], ...]
) -> tuple[list[Axis], tf.Tensor]:
    kernel, stride, dilation = window
    expected = tf.image.extract_patches(
        image, [1, *kernel, 1], [1, *stride, 1], [1, *dilation, 1], padding
    )
    found = []
    for axis in (0, 1):
        size, outputs = image.shape[axis + 1], expected.shape[axis + 1]
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        missing = max((outputs - 1) * stride[axis] + extent - size, 0)
        before = missing // 2 if padding == "SAME" else 0
        found.append(Axis(size, outputs, kernel[axis], stride[axis], dilation[axis], before))
    return found, expected


@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_patches_are_those_of_tensorflow(
    window: tuple, padding: str, *, row_by_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if row_by_row:
        monkeypatch.setattr(windows, "_MOST_PLACES", 0)
    *geometry, channels = window
    rng = np.random.default_rng(1)
    image = tf.constant(rng.normal(size=(2, 13, 12, channels)).astype(np.float32))
    (rows, columns), expected = axes(image, padding, tuple(geometry))
    met = patches(image, rows, columns)
    assert met.shape == (2, expected.shape[1] * expected.shape[2], expected.shape[3])
    np.testing.assert_array_equal(met, tf.reshape(expected, met.shape))


def test_pixels_in_front_of_the_first_window_are_skipped() -> None:
    image = tf.reshape(tf.range(24.0), [1, 4, 6, 1])
    met = patches(image, Axis(4, 2, 1, 1, 1, -2), Axis(6, 2, 2, 2, 1, -1))
    np.testing.assert_array_equal(met, [[[13, 14], [15, 16], [19, 20], [21, 22]]])


def copies(shape: tuple[int, ...], rows: Axis, columns: Axis) -> list[str]:
    """The ops that `patches` makes, but for those that only look at what is there."""
    graph = tf.function(lambda image: patches(image, rows, columns)).get_concrete_function(
        tf.TensorSpec(shape)
    )
    types = [op.type for op in graph.graph.get_operations()]
    return [name for name in types if name in ("PadV2", "GatherV2", "Slice", "ConcatV2")]


def test_a_pixel_for_a_window_needs_no_copies() -> None:
    assert not copies((2, 5, 4, 3), Axis(5, 5, 1, 1, 1, 0), Axis(4, 4, 1, 1, 1, 0))


def test_a_short_run_is_copied_in_two_stages() -> None:
    axis = Axis(28, 13, 4, 2, 1, 0)
    assert copies((2, 28, 28, 1), axis, axis) == ["Slice"] * 2 + ["ConcatV2", "GatherV2"]


def test_a_few_windows_that_never_lie_side_by_side_are_sliced_one_by_one() -> None:
    axis = Axis(20, 4, 5, 4, 1, 0)
    assert copies((2, 20, 20, 1), axis, axis) == ["Slice"] * 4 + ["ConcatV2", "GatherV2"]


def test_many_windows_that_never_lie_side_by_side_are_gathered_twice() -> None:
    axis = Axis(45, 11, 5, 4, 1, 0)
    assert copies((2, 45, 45, 1), axis, axis) == ["GatherV2"] * 2


def test_lists_of_places_do_not_grow_with_the_pixels_of_an_image() -> None:
    axis = Axis(224, 224, 3, 1, 1, 1)
    traced = tf.function(lambda image: patches(image, axis, axis.together(2)))
    graph = traced.get_concrete_function(tf.TensorSpec([2, 224, 224, 3])).graph
    gathers = [op for op in graph.get_operations() if op.type == "GatherV2"]
    assert [op.inputs[1].shape[0] for op in gathers] == [224 * 3, 112 * 3]


@pytest.mark.parametrize("before", [2, -1])
def test_an_image_with_its_padding_has_the_same_windows(before: int) -> None:
    image = tf.reshape(tf.range(1.0, 49.0), [1, 6, 8, 1])
    rows, columns = Axis(6, 4, 3, 2, 1, 1), Axis(8, 3, 4, 3, 1, before)
    framed, *inside = padded(image, rows, columns)
    assert not copies(framed.shape, *inside).count("PadV2")
    np.testing.assert_array_equal(patches(framed, *inside), patches(image, rows, columns))


@pytest.mark.parametrize(
    ("batch", "places", "expected"),
    [
        (32, 196, (8, 784)),
        (32, 25, (2, 400)),
        (6, 100, (1, 600)),
        (7, 200, (7, 200)),
        (4, 5000, (4, 5000)),
        (1, 1, (1, 1)),
    ],
)
def test_products_take_whole_images(batch: int, places: int, expected: tuple[int, int]) -> None:
    assert rows_at_once(batch, places) == expected
