"""The benchmark's models in PyTorch, of the layers that Opacus knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.layers import DPGRU, DPMultiheadAttention
from torch import nn

CLASSES = 10
"""As in `keras_models`, which holds TensorFlow and cannot be imported here."""


class Mean(nn.Module):
    """The mean over some axes: global average pooling."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        """[B, ...] without the axes."""
        return x.mean(self.axes)


class Last(nn.Module):
    """A GRU's output after its last step."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.gru = DPGRU(inputs, units, batch_first=True)

    def forward(self, x):
        """[B, steps, inputs] to [B, units]."""
        return self.gru(x)[0][:, -1]


class Block(nn.Module):
    """A residual block with GroupNormalization."""

    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, filters, 1, stride)
        self.main = nn.Sequential(
            nn.Conv2d(inputs, filters, 3, stride, padding=1),
            nn.GroupNorm(4, filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1),
            nn.GroupNorm(4, filters),
        )

    def forward(self, x):
        """[B, inputs, H, W] to [B, filters, H / stride, W / stride]."""
        return torch.relu(self.main(x) + self.skip(x))


class Encoder(nn.Module):
    """A transformer's encoder layer, normalised after each part."""

    def __init__(self, units: int):
        super().__init__()
        self.attention = DPMultiheadAttention(units, 4, batch_first=True)
        self.first, self.second = nn.LayerNorm(units), nn.LayerNorm(units)
        self.dense = nn.Sequential(nn.Linear(units, 64), nn.ReLU(), nn.Linear(64, units))

    def forward(self, x):
        """[B, steps, units] to the same."""
        x = self.first(x + self.attention(x, x, x)[0])
        return self.second(x + self.dense(x))


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, CLASSES)),
    )


def _resnet() -> nn.Module:
    blocks = (Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
    first = nn.Conv2d(3, 16, 3, padding=1)
    return nn.Sequential(first, *blocks, Mean(2, 3), nn.Linear(32, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    ),
    "cnn": _cnn,
    "text": lambda: nn.Sequential(
        nn.Embedding(10_000, 16), Mean(1), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, CLASSES)
    ),
    "gru": lambda: nn.Sequential(nn.Embedding(1_000, 16), Last(16, 32), nn.Linear(32, CLASSES)),
    "resnet": _resnet,
    "transformer": lambda: nn.Sequential(
        nn.Embedding(1_000, 32), Encoder(32), Encoder(32), Mean(1), nn.Linear(32, CLASSES)
    ),
}
