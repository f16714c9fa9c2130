"""Views made on a GPU are those made on a CPU."""

import pytest
import torch

from kaizen.config import ViewConfig
from kaizen.data.random import hash_rows
from kaizen.data.views import augment

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


@pytest.mark.parametrize(("side", "size"), [(8, 8), (32, 32), (224, 96)])
def test_crops_and_flips_are_the_same_to_the_bit(side: int, size: int) -> None:
    cpu, gpu = both(ViewConfig(**CROP), side, size)
    assert torch.equal(cpu * STD[:, None, None], cpu * STD[:, None, None])
    # One grey level is 1 / (255 * 0.2) here; whole levels leave nothing but the rounding of the normalisation.
    torch.testing.assert_close(gpu, cpu, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [32, 224])
def test_all_operations_differ_by_rounding_alone(size: int) -> None:
    cpu, gpu = both(ViewConfig(blur_p=0.5, solarize_p=0.2), size, size)
    apart = (cpu - gpu).abs()
    # Where rounding puts a level on the other side of the threshold of solarisation, or of a grey level before a blur.
    assert (apart > 1e-3).float().mean() < 1e-3
    assert apart.mean() < 1e-4
