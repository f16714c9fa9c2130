"""Random numbers are functions of integers, look random, and do not depend on other draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kaizen.data.random import Purpose, fold, hash_rows, permutation, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.integers(-(2**70), 2**70), max_size=5))
def test_a_key_is_a_signed_64_bit_integer_and_always_the_same(parts):
    key = fold(*parts)
    assert -(2**63) <= key < 2**63
    assert key == fold(*parts)


def test_keys_never_change_between_versions():
    """A run that is resumed with a newer version must draw the same numbers as before."""
    assert [fold(0), fold(1, 2), fold(-1)] == [-2152535657050944081, 1505054199308330484, 6004176723850346645]
    assert permutation(6, fold(7)).tolist() == [3, 0, 1, 2, 4, 5]


@given(INT64, INT64)
def test_the_order_of_the_parts_counts(first, second):
    if first != second:
        assert fold(first, second) != fold(second, first)


def test_the_number_of_parts_counts():
    assert len({fold(*[0] * count) for count in range(10)}) == 10


def test_purposes_are_distinct_and_so_are_their_keys():
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose.__members__)
    assert len({fold(3, purpose, 0) for purpose in Purpose}) == len(Purpose)


@given(INT64, INT64, INT64)
def test_rows_are_hashed_as_fold_does(key, first, second):
    rows = hash_rows(fold(key), torch.tensor([first]), torch.tensor([second]))
    assert rows.tolist() == [fold(key, first, second)]


def test_no_two_keys_ids_or_streams_share_a_number():
    ids = torch.arange(2000)
    hashes = torch.cat([hash_rows(fold(seed), ids) for seed in range(10)])
    assert len(hashes.unique()) == len(hashes)
    draws = torch.cat([uniform(hashes[:2000], 8, stream) for stream in range(4)]).flatten()
    # Among m numbers of 24 bits, about m**2 / 2**25 pairs coincide.
    assert len(draws) - len(draws.unique()) < 1.2 * len(draws) ** 2 / 2**25


def test_unsigned_keys_are_accepted():
    ids = torch.arange(3)
    assert torch.equal(hash_rows(2**64 - 1, ids), hash_rows(-1, ids))


@given(st.lists(INT64, max_size=20), st.integers(1, 30), st.integers(0, 5))
def test_numbers_are_in_range_and_the_same_alone_or_in_a_batch(keys, count, stream):
    draws = uniform(torch.tensor(keys, dtype=torch.int64), count, stream)
    assert draws.shape == (len(keys), count)
    assert draws.dtype == torch.float32
    assert bool(((draws >= 0) & (draws < 1)).all())
    for row, key in zip(draws, keys, strict=True):
        assert torch.equal(row, uniform(torch.tensor([key]), count, stream)[0])


def test_fewer_numbers_are_the_first_of_more():
    keys = torch.arange(5)
    assert torch.equal(uniform(keys, 3, 1), uniform(keys, 9, 1)[:, :3])


@pytest.mark.parametrize("hashed", [True, False], ids=["hashed keys", "plain ids"])
def test_numbers_are_uniform(hashed):
    keys = torch.arange(20_000)
    draws = uniform(hash_rows(fold(5), keys) if hashed else keys, 8)
    for column in draws.T:
        counts = torch.histc(column, bins=100, min=0, max=1)
        # Chi-square with 99 degrees of freedom: mean 99, standard deviation 14.
        assert ((counts - 200).square() / 200).sum() < 99 + 5 * 14


def test_neighbours_in_any_direction_are_uncorrelated():
    draws = torch.stack([uniform(torch.arange(20_000), 6, stream) for stream in range(3)])
    pairs = [(draws[:, 1:], draws[:, :-1]), (draws[:, :, 1:], draws[:, :, :-1]), (draws[1:], draws[:-1])]
    for first, second in pairs:
        both = torch.stack([first.flatten(), second.flatten()])
        assert abs(torch.corrcoef(both)[0, 1]) < 5 / both.shape[1] ** 0.5


@given(st.integers(0, 200), INT64)
def test_a_permutation_holds_each_number_once(n, key):
    order = permutation(n, key)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(n, key))


def test_permutations_of_three_are_equally_frequent():
    orders = torch.stack([permutation(3, fold(seed)) for seed in range(3000)])
    counts = (orders * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 500.0).square() / 500).sum() < 25
