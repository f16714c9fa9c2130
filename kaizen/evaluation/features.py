"""Features of images as they are: no augmentation, eval mode."""

import numpy as np
import torch
from torch import Tensor, nn

from kaizen.data.views import normalize

BATCH = 256


@torch.no_grad()
def extract_features(encoder: nn.Module, images: np.ndarray, ids: np.ndarray, mean: Tensor, std: Tensor) -> np.ndarray:
    """Features (n, d) float32 of images[ids], in eval mode; the encoder is left in the mode it was in.

    Args:
        encoder: images (n, 3, h, w) -> features (n, d); its BatchNorm statistics are read and not touched.
        images: uint8 (N, 3, h, w).
        ids: (n,) rows of it, n >= 1.
        mean, std: (3,) for 0..1, on the encoder's device.
    """
    was_training = encoder.training
    encoder.eval()
    parts = []
    for start in range(0, len(ids), BATCH):
        batch = torch.from_numpy(images[ids[start : start + BATCH]]).to(mean.device)
        parts.append(encoder(normalize(batch, mean, std)).float().cpu())
    encoder.train(was_training)
    return torch.cat(parts).numpy()
