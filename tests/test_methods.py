"""SSL methods: the registry, queues, and what each step leaves behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kaizen.errors import ConfigError
from kaizen.losses import info_nce
from kaizen.methods import REGISTRY, method_class
from kaizen.methods.base import Outputs
from kaizen.methods.mocov2plus import MoCoV2Plus, MoCoV2PlusSettings
from kaizen.methods.queue import KeyQueue
from kaizen.parallel import Batch


@pytest.mark.parametrize("name", REGISTRY)
def test_registered_methods_name_themselves(name: str) -> None:
    assert method_class(name).Settings.model_fields["name"].default == name


def test_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match="simclr, mocov2plus"):
        method_class("simclr2")


@given(st.integers(1, 12), st.lists(st.integers(1, 30), min_size=1, max_size=6))
@settings(deadline=None)
def test_queue_is_a_ring_that_holds_the_latest_keys(size: int, pushes: list[int]) -> None:
    queue, written = KeyQueue(size, 2), []
    expected = queue.keys.clone()
    place = 0
    for count in pushes:
        keys = torch.arange(len(written), len(written) + count, dtype=torch.float32)[:, None].repeat(1, 2)
        written += [None] * count
        queue.push(keys)
        for key in keys:
            expected[place % size] = key
            place += 1
    assert torch.equal(queue.keys, expected)
    assert int(queue.next) == place % size


def test_queue_starts_as_unit_rows() -> None:
    assert torch.allclose(KeyQueue(50, 16).keys.norm(dim=1), torch.ones(50))


def test_moco_loss_meets_the_other_views_keys_and_pushes_each_views_own() -> None:
    method = MoCoV2Plus(MoCoV2PlusSettings(projector_out=4, queue_size=6, temperature=0.2))
    z, k = ([torch.randn(3, 4) for _ in range(2)] for _ in range(2))
    outputs, batch = Outputs(z, k), Batch(3, 0, 3)
    q1, q2, k1, k2 = (F.normalize(t, dim=1) for t in (*z, *k))
    queue1, queue2 = method.queue1.keys.clone(), method.queue2.keys.clone()
    expected = (info_nce(q1, k2, queue2, 0.2) + info_nce(q2, k1, queue1, 0.2)) / 2
    assert torch.allclose(method.loss(outputs, batch), expected)
    method.after_step(outputs, batch)
    assert torch.allclose(method.queue1.keys[:3], k1)
    assert torch.allclose(method.queue2.keys[:3], k2)
    assert torch.equal(method.queue1.keys[3:], queue1[3:])
