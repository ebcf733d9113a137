"""The benchmark's models in PyTorch."""

from __future__ import annotations

from torch import nn
from workload import CLASSES

NETS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, CLASSES)),
    ),
}


def tensors(workload):
    """All users' images [users, examples, 1, 28, 28] and labels as torch tensors."""
    import torch

    torch.set_num_threads(1)
    images = torch.from_numpy(workload.floats()).permute(0, 1, 4, 2, 3).contiguous()
    return images, torch.from_numpy(workload.y).long()
