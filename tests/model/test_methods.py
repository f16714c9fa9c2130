"""SSL methods: the registry, queues, and the state after each step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import in_epoch, run_of, settings_of
from torch.nn import functional as F

from kaizen.commands.train import main
from kaizen.data.random import permutation
from kaizen.errors import ConfigError
from kaizen.losses import info_nce, w_mse
from kaizen.model.methods import REGISTRY, method_class
from kaizen.model.methods.base import Outputs
from kaizen.model.methods.deepclusterv2 import spherical_kmeans
from kaizen.model.methods.mocov2plus import MoCoV2Plus
from kaizen.model.methods.queue import GrowingQueue, KeyQueue
from kaizen.model.methods.wmse import whiten
from kaizen.model.networks.heads import Prototypes
from kaizen.parallel import Batch


@pytest.mark.parametrize("name", REGISTRY)
def test_registered_methods_name_themselves(name: str) -> None:
    assert method_class(name).Settings.model_fields["name"].default == name


def test_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match="simclr, supcon, mocov2plus"):
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
    method = MoCoV2Plus(MoCoV2Plus.Settings(projector_out=4, queue_size=6, temperature=0.2))
    z, k = ([torch.randn(3, 4) for _ in range(2)] for _ in range(2))
    outputs, batch = Outputs(z, k, torch.zeros(3, dtype=torch.int64)), Batch(3, 0, 3)
    q1, q2, k1, k2 = (F.normalize(t, dim=1) for t in (*z, *k))
    queue1, queue2 = method.queue1.keys.clone(), method.queue2.keys.clone()
    expected = (info_nce(q1, k2, queue2, 0.2) + info_nce(q2, k1, queue1, 0.2)) / 2
    assert torch.allclose(method.loss(outputs, batch), expected)
    method.after_step(outputs, batch)
    assert torch.allclose(method.queue1.keys[:3], k1)
    assert torch.allclose(method.queue2.keys[:3], k2)
    assert torch.equal(method.queue1.keys[3:], queue1[3:])


def outputs_of(name: str, n: int, views: int = 2) -> tuple[Any, Outputs, Batch]:
    """A method, and outputs of networks for a batch of n - 2 current and 2 replay images."""
    torch.manual_seed(0)
    method = method_class(name)(settings_of(name))
    method.build_heads(6, 4)
    method.begin_task(20)
    method.begin_epoch(1, lambda: [torch.randn(20, 8) for _ in range(2)])
    projections = [torch.randn(n, 8, requires_grad=True) for _ in range(views)]
    twin = [method.twin_head(torch.randn(n, 8)).detach() for _ in method.twin_views]
    labels = torch.arange(n) % 4 - 1
    places = torch.cat([torch.arange(n - 2), torch.full((2,), -1)])
    batch = Batch(n - 2, 2, int((labels >= 0).sum()), key=5, places=places)
    features = [torch.randn(n, 6) for _ in range(views)]
    return method, Outputs(projections, twin, labels, features=features), in_epoch(batch, method, 0)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_method_gives_a_finite_loss_whose_gradient_reaches_the_projections(name: str) -> None:
    method, outputs, batch = outputs_of(name, 14)
    loss = method.loss(outputs, batch)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    trained = outputs.projections[:1] if name == "ressl" else outputs.projections
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in trained)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.after_step(Outputs([z.detach() for z in outputs.projections], outputs.twin, outputs.labels), batch)
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    stateful = {"mocov2plus": "queue1", "nnclr": "queue", "ressl": "queue", "swav": "queues", "dino": "center"}
    assert bool(moved) == (name in stateful or name == "deepclusterv2")
    assert all(key.startswith((stateful.get(name, "memory"), "queue2")) for key in moved)


def test_whitened_rows_have_mean_zero_and_covariance_one() -> None:
    rows = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    white = whiten(rows, 1e-9)
    assert torch.allclose(white.mean(dim=0), torch.zeros(6, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(torch.cov(white.t()), torch.eye(6, dtype=torch.float64), atol=1e-6)
    assert torch.isfinite(whiten(torch.ones(3, 6), 1e-3)).all(), "identical rows, fewer than dimensions"
    assert torch.isfinite(whiten(1e4 * torch.randn(128, 16) @ torch.randn(16, 64), 1e-3)).all(), "large, of low rank"


def test_whitening_is_lightlys() -> None:
    from lightly.loss.wmse_loss import Whitening2d

    rows = torch.randn(40, 6, dtype=torch.float64)
    theirs = Whitening2d(6, eps=1e-3)(rows)
    assert torch.allclose(whiten(rows, 1e-3), theirs, atol=1e-9)


def test_wmse_cuts_the_batch_alike_in_both_views_and_joins_the_rest_to_the_last_slice() -> None:
    method = method_class("wmse")(settings_of("wmse"))
    z, batch = [torch.randn(27, 8, dtype=torch.float64) for _ in range(2)], Batch(27, 0, 0, key=7)
    order = permutation(27, 7)
    views = [torch.cat([whiten(part, 1e-3) for part in (v[order][:10], v[order][10:])]) for v in z]
    found = method.loss(Outputs(z, [], torch.zeros(27)), batch)
    assert found.item() == pytest.approx(w_mse(*views).item(), rel=1e-12)


def test_kmeans_finds_separate_clusters_and_keeps_the_centroid_of_an_empty_one() -> None:
    centres = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    points = F.normalize(centres.repeat_interleave(20, dim=0) + 0.05 * torch.randn(60, 3), dim=1)
    far = torch.tensor([[-1.0, -1, -1]]) / 3**0.5
    centroids, assigned = spherical_kmeans(points, torch.cat([points[[0, 20, 40]], far]), 10)
    assert assigned.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert torch.allclose(centroids[:3], centres, atol=0.1)
    assert torch.equal(centroids[3], far[0])


def test_deepcluster_remembers_current_images_only_and_clusters_them_anew_each_epoch() -> None:
    method, outputs, batch = outputs_of("deepclusterv2", 14)
    memory, centroids = method.memory.clone(), method.centroids.clone()
    method.after_step(Outputs([z.detach() for z in outputs.projections], [], outputs.labels), batch)
    assert torch.allclose(method.memory[1, :12], F.normalize(outputs.projections[1].detach(), dim=1)[:12])
    assert torch.equal(method.memory[:, 12:], memory[:, 12:])
    method.begin_epoch(2, lambda: pytest.fail("filled a second time"))
    assert not torch.equal(method.centroids, centroids)
    assert torch.allclose(method.centroids.norm(dim=2), torch.ones(3, 12))


def test_swav_takes_small_crops_freezes_its_prototypes_and_uses_the_filled_part_of_its_queue() -> None:
    method, outputs, batch = outputs_of("swav", 14, views=5)
    method.loss(outputs, batch).backward()
    assert all(z.grad.abs().sum() > 0 for z in outputs.projections), "small crops are trained"
    assert method.heads.direction.grad.abs().sum() > 0
    method.after_backward(batch)
    assert method.heads.direction.grad is None
    empty = method.loss(outputs, in_epoch(batch, method, 99)).item()
    for part in method.queues:
        part.push(F.normalize(torch.randn(5, 8), dim=1))
        part.count(5)
    late = in_epoch(batch, method, 99)
    assert late.phase.rows == 5
    assert method.loss(outputs, late).item() != empty
    assert method.loss(outputs, batch).item() == empty, "before its epoch the queue is not used"


def test_the_host_counts_along_what_a_growing_queue_holds() -> None:
    queue, restored = GrowingQueue(6, 2), GrowingQueue(6, 2)
    assert queue.filled() == 0
    for rows, filled in ((4, 4), (3, 6), (2, 6)):
        queue.push(torch.ones(rows, 2))
        queue.count(rows)
        assert queue.filled() == filled
    restored.load_state_dict(queue.state_dict())
    assert restored.filled() == 6


def test_dinos_temperature_rises_over_the_first_epochs_and_its_last_layer_rests() -> None:
    method, outputs, batch = outputs_of("dino", 6)
    method.settings = method.settings.model_copy(update={"teacher_temperature_epochs": 5})
    temperatures = [method.teacher_temperature(epoch) for epoch in (0, 2, 4, 9)]
    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])
    method.loss(outputs, batch).backward()
    method.after_backward(in_epoch(batch, method, 1))
    assert method.twin_head.prototypes.direction.grad is not None
    method.after_backward(batch)
    assert method.twin_head.prototypes.direction.grad is None
    method.after_step(outputs, batch)
    assert torch.allclose(method.center, 0.1 * torch.cat(outputs.twin).mean(dim=0, keepdim=True))


def test_dinos_small_crops_follow_both_large_views_whose_centre_they_do_not_move() -> None:
    method, outputs, batch = outputs_of("dino", 6, views=4)
    method.center.normal_()
    with torch.no_grad():
        scores = [method.twin_head(z) / 0.1 for z in outputs.projections]
    targets = [((view - method.center) / 0.04).softmax(dim=1) for view in outputs.twin]
    pairs = [(s, t) for v, s in enumerate(scores) for u, t in enumerate(targets) if u != v]
    assert len(pairs) == 6
    loss = method.loss(outputs, batch)
    assert loss.item() == pytest.approx(sum(F.cross_entropy(*pair).item() for pair in pairs) / 6, rel=1e-5)
    loss.backward()
    assert all(z.grad.abs().sum() > 0 for z in outputs.projections), "small crops are trained"
    before = method.center.clone()
    method.after_step(outputs, batch)
    assert torch.allclose(method.center, 0.9 * before + 0.1 * torch.cat(outputs.twin).mean(dim=0), atol=1e-6)


def test_prototypes_are_directions_times_gains() -> None:
    learned, fixed = Prototypes(5, 3), Prototypes(5, 3, learned_gain=False)
    assert torch.allclose(learned.weight(), learned.direction)
    assert torch.allclose(fixed.weight().norm(dim=1), torch.ones(5))
    assert [name for name, _ in fixed.named_parameters()] == ["direction"]
    assert list(fixed.state_dict()) == ["direction"]


def test_nearest_is_by_cosine() -> None:
    queue = KeyQueue(3, 2)
    queue.push(torch.tensor([[1.0, 0], [0, 1], [-1, 0]]))
    assert queue.nearest(torch.tensor([[0.1, 5.0], [-3, 1]])).tolist() == [[0, 1], [-1, 0]]


def test_another_method_is_one_file_and_one_line(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(REGISTRY, "toy", "toy_method:Toy")
    toy = ["--method.name", "toy", "--method.pull", "0.5", "--method.projector_hidden", "8"]
    assert main([*tiny, *toy, "--stream.tasks", "2"]) == 0
    lines = [json.loads(line) for line in (run_of(tiny) / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss/ssl"] > 0
    assert lines[-1]["loss/distill"] > 0
    assert main([*tiny, *toy, "--distill.name", "knowledge"]) == 2


TOY = """
from typing import Literal

from pydantic import Field

from kaizen.config.schema import MethodSettings
from kaizen.config.types import Positive
from kaizen.model.methods.base import Method


class Toy(Method):
    class Settings(MethodSettings):
        name: Literal["toy"] = "toy"
        pull: Positive = Field(1.0, description="strength")

    distiller = "predictive"
    projector_form = {}

    def loss(self, outputs, batch):
        z1, z2 = outputs.projections
        return batch.share(self.settings.pull * (z1 - z2).square().mean())
"""
