"""Small images and random keys for tests of views."""

import torch

from kaizen.data.random import fold, hash_rows


def some_images(n, size=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    # Equal channels, black and white have no hue: some whole regions are like that.
    images[:, :, :2, :2], images[:, :, :2, 2:4] = 0, 255
    images[:, :, 2:4] = images[:, :1, 2:4]
    return images


def some_keys(n, seed=0):
    return hash_rows(fold(seed), torch.arange(n))
