"""The buffer that carries a step's numbers to the device: nothing is rounded on the way."""

import math

import torch

from kaizen.data.packing import pack, unpack


def test_what_is_packed_comes_back_to_the_bit() -> None:
    columns = [torch.randint(-(2**62), 2**62, (5,)) for _ in range(4)]
    columns.append(torch.rand(5, dtype=torch.float64))
    rates, follow, share, method = [0.1, 1 / 3], 1 - 0.996, 1 / 7, [math.pi, 1e-300]
    packed = pack(columns, -(2**63), [*rates, follow, share, *method], pinned=False)
    assert packed.dtype == torch.int64
    found = unpack(packed, 5, groups=2)
    for one, other in zip(columns, found[:5], strict=True):
        assert torch.equal(one, other)
    assert int(found.key) == -(2**63)
    assert found.rates.tolist() == rates
    assert (float(found.follow), float(found.label_share)) == (follow, share)
    assert found.method.tolist() == method
    none = unpack(pack(columns, 1, [0.5, 0.0, 1.0], pinned=False), 5, groups=1)
    assert none.method.shape == (0,)


def test_what_is_unpacked_follows_the_buffer() -> None:
    """A recorded step reads the same memory at each replay."""
    first, second = (pack([torch.full((3,), value)] * 5, value, [float(value)] * 3, pinned=False) for value in (1, 2))
    found = unpack(first, 3, groups=1)
    first.copy_(second)
    assert found.labels.tolist() == [2, 2, 2]
    assert float(found.rates) == float(found.follow) == float(found.label_share) == float(found.key) == 2
