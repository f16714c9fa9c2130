"""The order of samples: the same global batch for any number of processes, and stateless."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen.data.sampler import Sampler
from kaizen.parallel import Batch, Group


def sampler(
    images: int, batch: int, memory: int, replay: int, rank: int = 0, world: int = 1, seed: int = 3, parts: int = 1
) -> Sampler:
    ids = np.arange(100, 100 + images)
    labels = np.where(ids % 3 == 0, -1, ids % 5)
    return Sampler(
        seed,
        1,
        ids,
        labels,
        batch,
        torch.arange(memory),
        torch.arange(memory) % 4,
        replay,
        group=Group(rank, world),
        parts=parts,
    )


sizes = st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(0, 20), st.integers(1, 12))


@given(sizes, st.integers(1, 64), st.integers(0, 50))
@settings(deadline=None)
def test_slices_of_all_ranks_make_up_the_global_batch(size: tuple[int, int, int, int], world: int, step: int) -> None:
    whole = sampler(*size).draw(step)[0]
    parts = [sampler(*size, rank, world).draw(step)[0] for rank in range(world)]
    order = torch.tensor([p for rank in range(world) for part in parts[0].batch.slices(rank) for p in part])
    assert sorted(order.tolist()) == list(range(whole.batch.size))
    keys = torch.empty_like(whole.keys)
    keys[order] = torch.cat([part.keys for part in parts])
    assert torch.equal(keys, whole.keys)
    assert torch.equal(torch.cat([part.sample_ids for part in parts]), whole.sample_ids)
    assert torch.equal(torch.cat([part.memory_rows for part in parts]), whole.memory_rows)
    local = [len(part.sample_ids) + len(part.memory_rows) for part in parts]
    assert tuple(local) == parts[0].batch.sizes
    assert max(local) - min(local) <= 2


@given(sizes, st.integers(1, 9), st.integers(1, 6), st.integers(0, 20))
@settings(deadline=None)
def test_parts_of_a_step_make_up_its_batch_with_the_same_views(
    size: tuple[int, int, int, int], world: int, parts: int, step: int
) -> None:
    whole = sampler(*size).draw(step)[0]
    draws = [sampler(*size, rank, world, parts=parts).draw(step) for rank in range(world)]
    for name in ("sample_ids", "memory_rows"):
        drawn = torch.cat([getattr(draws[rank][part], name) for part in range(parts) for rank in range(world)])
        assert torch.equal(drawn, getattr(whole, name))
    assert sum(part.batch.labelled for part in draws[0]) == whole.batch.labelled
    keys = torch.cat([draw.keys for of_rank in draws for draw in of_rank])
    assert sorted(keys.tolist()) == sorted(whole.keys.tolist())
    alone = [draw.batch for draw in sampler(*size, parts=parts).draw(step)]
    joined = Batch.joined(alone)
    assert joined.places is not None
    assert torch.equal(joined.gather(joined.places), whole.batch.places)


@given(sizes)
@settings(deadline=None)
def test_an_epoch_shows_every_image_at_most_once_and_drops_less_than_a_batch(size: tuple[int, int, int, int]) -> None:
    images, batch, memory, _ = size
    order = sampler(*size)
    assert order.steps_per_epoch == images // min(batch, images)
    seen = torch.cat([order.draw(step)[0].sample_ids for step in range(order.steps_per_epoch)])
    assert len(set(seen.tolist())) == len(seen) > images - batch
    assert sampler(images, batch, 0, 9).steps_per_epoch == order.steps_per_epoch, "replay never changes the steps"
    assert memory or order.draw(0)[0].batch.replay == 0


@given(sizes, st.integers(1, 30))
@settings(deadline=None)
def test_a_last_epoch_that_is_cut_shows_its_images_once_more(size: tuple[int, int, int, int], steps: int) -> None:
    order = sampler(*size)
    seen = torch.cat([order.draw(step)[0].sample_ids for step in range(steps)])
    assert max(seen.unique(return_counts=True)[1]) <= -(-steps // order.steps_per_epoch)
    assert len(seen) == steps * order.batch


@given(st.integers(1, 20), st.integers(1, 12))
@settings(deadline=None)
def test_replay_draws_every_image_once_before_it_draws_one_twice(memory: int, replay: int) -> None:
    order = sampler(30, 10, memory, replay)
    drawn = torch.cat([order.draw(step)[0].memory_rows for step in range(2 * memory)])
    for start in range(0, len(drawn) - memory + 1, memory):
        assert sorted(drawn[start : start + memory].tolist()) == list(range(memory))


def test_draws_are_functions_of_the_step_alone() -> None:
    ahead, fresh = sampler(50, 16, 7, 5), sampler(50, 16, 7, 5)
    draws = [ahead.draw(step)[0] for step in range(12)]
    for step in (11, 0, 5):
        again = fresh.draw(step)[0]
        assert torch.equal(again.sample_ids, draws[step].sample_ids)
        assert torch.equal(again.memory_rows, draws[step].memory_rows)
        assert torch.equal(again.keys, draws[step].keys)


def test_epochs_seeds_and_tasks_have_orders_of_their_own() -> None:
    first = sampler(64, 64, 0, 1)
    assert not torch.equal(first.draw(0)[0].sample_ids, first.draw(1)[0].sample_ids)
    assert not torch.equal(first.draw(0)[0].sample_ids, sampler(64, 64, 0, 1, seed=4).draw(0)[0].sample_ids)
    other = sampler(64, 64, 0, 1)
    other.task = 2
    assert not torch.equal(first.draw(0)[0].sample_ids, other.draw(0)[0].sample_ids)


def test_an_image_drawn_twice_gets_other_views() -> None:
    draw = sampler(8, 4, 1, 6).draw(0)[0]
    assert draw.memory_rows.tolist() == [0] * 6
    assert len(set(draw.keys.tolist())) == draw.batch.size


def test_labelled_images_of_the_global_batch_are_counted() -> None:
    draw = sampler(30, 30, 4, 2, rank=1, world=3).draw(0)[0]
    assert draw.batch.labelled == sum(i % 3 != 0 for i in range(100, 130)) + 2
