"""Mixing with the memory: the shares, and the partners, which no number of processes or parts changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from kaizen.data.mixing import Mixing, mix
from kaizen.data.random import fold
from kaizen.data.sampler import Sampler
from kaizen.parallel import Batch, Group


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 8.0])
def test_shares_follow_the_beta_distribution_and_belong_to_their_keys(alpha: float) -> None:
    every, one = Mixing(alpha, per_image=True), Mixing(alpha, per_image=False)
    shares = torch.cat([every.shares(fold(3, step), 80) for step in range(50)])
    assert shares.dtype == torch.float64
    assert kstest(shares.numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3
    assert torch.equal(every.shares(fold(3, 7), 80), shares[560:640])
    same = [one.shares(fold(3, step), 80) for step in range(2000)]
    assert all(len(set(drawn.tolist())) == 1 for drawn in same)
    assert kstest([float(drawn[0]) for drawn in same], beta(alpha, alpha).cdf).pvalue > 1e-3


def test_images_are_mixed_row_by_row() -> None:
    rng = np.random.default_rng(0)
    current, remembered = rng.normal(size=(2, 3, 3, 4, 4)).astype(np.float32)
    both = torch.from_numpy(np.concatenate([current, remembered])).contiguous(memory_format=torch.channels_last)
    shares = torch.tensor([0.3, 1.0, 0.0], dtype=torch.float64)
    mixed = mix(both, torch.cat([shares, 1 - shares]))
    assert mixed.dtype == torch.float32
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(mixed[0].numpy(), 0.3 * current[0] + 0.7 * remembered[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(mixed[1], both[1])
    assert torch.equal(mixed[2], both[5])


def sampler(images: int, batch: int, memory: int, world: int = 1, rank: int = 0, parts: int = 1) -> Sampler:
    ids = np.arange(100, 100 + images)
    held = torch.arange(memory)
    labels = np.where(ids % 3 == 0, -1, ids % 5)
    group = Group(rank, world)
    return Sampler(3, 1, ids, labels, batch, held, held % 4 - 1, 7, group=group, parts=parts, mix=Mixing(0.4, True))


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 50), st.integers(1, 9), st.integers(1, 5))
@settings(deadline=None)
def test_an_image_has_the_same_partner_whatever_the_processes_and_parts(
    images: int, batch: int, memory: int, world: int, parts: int
) -> None:
    step = 2
    whole = sampler(images, batch, memory).draw(step)[0]
    n = min(images, batch)
    assert len(whole.sample_ids) == len(whole.memory_rows) == n, "replay.batch is not used"
    assert (whole.batch.current, whole.batch.replay) == (n, 0), "networks see one image for each pair"
    assert whole.shares is not None
    keys, shares = whole.keys.tolist(), whole.shares.tolist()
    expected = {
        int(image): (int(row), keys[i], keys[n + i], shares[i])
        for i, (image, row) in enumerate(zip(whole.sample_ids, whole.memory_rows, strict=True))
    }
    found: dict[int, tuple[int, int, int, float]] = {}
    for rank in range(world):
        for part in sampler(images, batch, memory, world, rank, parts).draw(step):
            local = len(part.sample_ids)
            assert part.shares is not None
            assert len(part.memory_rows) == local == part.batch.sizes[rank]
            for i, (image, row) in enumerate(zip(part.sample_ids, part.memory_rows, strict=True)):
                found[int(image)] = int(row), int(part.keys[i]), int(part.keys[local + i]), float(part.shares[i])
    assert found == expected
    alone = [part.batch for part in sampler(images, batch, memory, parts=parts).draw(step)]
    joined = Batch.joined(alone)
    assert joined.places is not None
    assert torch.equal(joined.gather(joined.places), whole.batch.places)
    labels = [*(-1 if i % 3 == 0 else i % 5 for i in whole.sample_ids.tolist()), *(whole.memory_rows % 4 - 1).tolist()]
    assert joined.labelled == sum(label >= 0 for label in labels), "labels of both images count"


def test_nothing_is_mixed_before_there_is_a_memory() -> None:
    draw = sampler(20, 8, 0).draw(0)[0]
    assert (draw.batch.current, draw.batch.replay, len(draw.memory_rows)) == (8, 0, 0)
    assert draw.shares is None
    assert sampler(20, 8, 1).draw(0)[0].shares is not None
