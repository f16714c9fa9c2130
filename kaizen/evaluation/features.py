"""Features of unaugmented images in eval mode."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from kaizen.data.splits import Images
from kaizen.data.views import normalize
from kaizen.parallel import Parallel, memory_format, shard

BATCH = 256
RANK_IMAGES = 25_600
"""Maximum number of images for `rankme`, as its authors use."""


def encode(encoder: nn.Module, images: Tensor, moments: tuple[Tensor, Tensor], layout: torch.memory_format) -> Tensor:
    """Features (n, d) float32 of a batch uint8 (n, 3, h, w), normalised by mean and std (3,) for 0..1."""
    features: Tensor = encoder(normalize(images, *moments).contiguous(memory_format=layout))
    return features.float()


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    sets: Sequence[tuple[Images, np.ndarray]],
    moments: tuple[Tensor, Tensor],
    parallel: Parallel,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Features (n, d) float32 of the images of all sets, one set after the other, on every process.

    Processes share whole batches, so that the arithmetic of each image does not depend on their number.

    Args:
        encoder: images (n, 3, h, w) -> features (n, d), on the device; its mode is restored, its running
            statistics are used and not updated.
        sets: images (see `Images`) and rows of them (n,).
        moments: mean and std (3,) for 0..1, on the device.
        check: called by all processes before each batch.
    """
    batches = [(images, ids[start : start + BATCH]) for images, ids in sets for start in range(0, len(ids), BATCH)]
    parts = [
        batches[part.start : part.stop]
        for part in (shard(len(batches), r, parallel.world) for r in range(parallel.world))
    ]
    mine, was_training = parts[parallel.rank], encoder.training
    layout = memory_format(encoder, parallel.device)
    encoder.eval()
    local = [torch.empty(0, cast(int, encoder.feature_dim), device=parallel.device)]
    with closing(_ahead(mine)) as read:
        for number in range(max(map(len, parts))):
            check()
            if number < len(mine):
                local.append(encode(encoder, parallel.put(torch.from_numpy(next(read))), moments, layout))
    encoder.train(was_training)
    return parallel.group.gather(torch.cat(local), [sum(len(ids) for _, ids in part) for part in parts])


def _ahead(batches: Sequence[tuple[Images, np.ndarray]]) -> Generator[np.ndarray]:
    """Pixels uint8 (n, 3, h, w) of each batch, read while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="kaizen-read") as thread:
        futures: list[Future[np.ndarray]] = []
        for images, ids in batches:
            futures.append(thread.submit(images.__getitem__, ids))
            if len(futures) > 1:
                yield futures.pop(0).result()
        for future in futures:
            yield future.result()


@torch.no_grad()
def extract_logits(
    encoder: nn.Module,
    classifier: nn.Module,
    images: Images,
    ids: np.ndarray,
    moments: tuple[Tensor, Tensor],
    parallel: Parallel,
) -> Tensor:
    """Logits (n, classes) float32 on the CPU of the images `ids` (n,), unaugmented and in eval mode, on every process.

    Args:
        encoder, classifier: images (n, 3, h, w) -> features -> logits, on the device.
        images: see `Images`; moments: mean and std (3,) for 0..1, on the device.
    """
    features = extract_features(encoder, [(images, ids)], moments, parallel)
    dtype = next(classifier.parameters()).dtype
    return torch.cat([classifier(part.to(dtype)).float() for part in features.split(BATCH)]).cpu()


def wide(features: Tensor) -> Tensor:
    """Features in float64, which Apple's GPUs do not have."""
    return (features.cpu() if features.device.type == "mps" else features).double()


def rankme(features: Tensor) -> float:
    """Effective rank of features (n, d), 1 to min(n, d), or 0 if all are 0.

    exp of the entropy of the singular values, divided by their sum (RankMe: Garrido et al. 2023, arXiv 2210.02885,
    equation 2, without its epsilon); if there are more than RANK_IMAGES rows, evenly spaced rows are taken.
    """
    rows = wide(features[:: -(-len(features) // RANK_IMAGES) or 1])
    # From the smaller square matrix, in a fraction of the time of a decomposition of all rows.
    squares = torch.linalg.eigvalsh(rows.T @ rows if len(rows) >= rows.shape[1] else rows @ rows.T)
    values = squares[squares > torch.finfo(squares.dtype).eps * len(squares) * squares.amax()].sqrt()
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(values) else 0.0
