"""What the comparisons of several processes with one share: very small networks, and one uneven global batch."""

import torch
from torch import Tensor

SMALL = ["digits", "--encoder.width", "4", "--classifier.hidden", "[12]"]
SMALL += ["--method.projector_hidden", "16", "--method.projector_out", "8", "--distill.hidden", "16"]
CURRENT, REPLAY = 7, 4
LABELS = torch.tensor([0, -1, -1, -1, 4, 2, 2, -1, 1, 5, 5])
PREDICTOR, QUEUE = ("--method.predictor_hidden", "16"), ("--method.queue_size", "9")
PROTOTYPES = ("--method.prototypes", "5")
KEYS = {
    "simclr": ("--method.temperature", "0.2"),
    "mocov2plus": QUEUE,
    "nnclr": (*QUEUE, *PREDICTOR),
    "byol": PREDICTOR,
    "simsiam": PREDICTOR,
    # With too few rows per dimension the covariance is nearly singular and rounding errors grow without bounds.
    "wmse": ("--method.projector_out", "4"),
    "swav": (*QUEUE, *PROTOTYPES, "--method.queue_epoch", "3"),
    "deepclusterv2": PROTOTYPES,
    "dino": PROTOTYPES,
    "ressl": QUEUE,
    "lejepa": ("--method.directions", "64"),
}
WEIGHTS = {"ssl": 1.0, "distill": 0.7, "classifier": 1.3, "classifier_distill": 2.0}


def keys_of(chosen: tuple[str, ...]) -> tuple[str, ...]:
    return (*chosen, *KEYS.get(chosen[1], ()))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / one.norm())
