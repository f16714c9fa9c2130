"""Models with random weights and outputs of a reader, for tests that need no trained run."""

from pathlib import Path
from typing import Any

import torch

from kaizen.config.encoder import EncoderConfig
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.heads import mlp
from kaizen.takeaway.description import Description, Held

NAMES = ("cat", "dog", "eel")
ORIGIN: dict[str, Any] = {
    "recipe": "mine",
    "preset": None,
    "config_hash": "0123",
    "data": {"source": "imagefolder:pets", "digest": "4567"},
    "stream": {"kind": "joint", "tasks": [{"name": "joint", "train_images": 3, "test_images": 3}]},
    "labels": {"fraction": 1.0},
    "method": {"name": "simclr", "weight": 1.0},
    "distill": {"name": "none"},
    "replay": {"policy": "none"},
    "optim": {"name": "sgd", "epochs": 1, "batch": 8},
    "seed": 0,
}


def held_of(encoder: EncoderConfig, size: int, **changes: Any) -> Held:
    """What `read_run` would find: an untrained encoder for images of this side, and a classifier."""
    torch.manual_seed(0)
    network = build_encoder(encoder, size)
    for buffer in network.buffers():  # as after training: no statistics of 0 and 1
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.uniform_(0.5, 1.5)
    head = mlp((network.feature_dim, 5, len(NAMES)))
    tensors = {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    about = {
        "kaizen": "0.1.0",
        "encoder": encoder,
        "features": network.feature_dim,
        "image_size": size,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
        "class_names": NAMES,
        "taught": {"classifier": (0, 1, 2)},
        "task": 0,
        "run": ORIGIN,
    }
    return Held(Description(**about | changes), tensors, Path("a run"))
