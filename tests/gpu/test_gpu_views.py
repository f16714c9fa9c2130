"""Views made on a GPU are those made on a CPU."""

import pytest
import torch

from kaizen.config.views import ViewConfig
from kaizen.data.random import hash_rows
from kaizen.data.views import augment

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("accelerate_anew")]

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.3, 0.3, 0.2])
CROP = {"jitter_p": 0, "gray_p": 0}


def both(config: ViewConfig, side: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = hash_rows(7, torch.arange(64))
    made = []
    for device in ("cpu", "cuda"):
        given = (tensor.to(device) for tensor in (images, keys))
        made.append(augment(*given, 1, config, size, MEAN.to(device), STD.to(device)).cpu())
    return made[0], made[1]


LEVEL = 1 / (255 * float(STD.min()))
"""One grey level, at most, in a normalised view."""


@pytest.mark.parametrize(("side", "size"), [(8, 8), (32, 32), (40, 16)])
def test_crops_and_flips_are_the_same_to_the_bit(side: int, size: int) -> None:
    """Weights of small images come from a table and products are exact; normalisation alone is rounded."""
    cpu, gpu = both(ViewConfig(**CROP), side, size)
    torch.testing.assert_close(gpu, cpu, rtol=0, atol=2e-6)


def test_crops_of_large_images_differ_by_a_grey_level_here_and_there() -> None:
    """Their weights are computed on the device, which rounds otherwise."""
    cpu, gpu = both(ViewConfig(**CROP), 224, 96)
    apart = (cpu - gpu).abs()
    assert apart.max() < 1.01 * LEVEL
    assert (apart > 1e-3).float().mean() < 2e-3


@pytest.mark.parametrize("size", [32, 224])
def test_all_operations_differ_by_rounding_alone(size: int) -> None:
    cpu, gpu = both(ViewConfig(blur_p=0.5, solarize_p=0.2), size, size)
    apart = (cpu - gpu).abs()
    # Where rounding puts a level on the other side of the threshold of solarisation, or of a grey level before a blur.
    assert (apart > 1e-3).float().mean() < 5e-3
    assert apart.mean() < 2e-4
