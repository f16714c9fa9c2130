"""Alignment of the classifier: which features it sees, and that it finds the best classifier for Gaussian classes."""

import pytest
import torch
from torch import Tensor, nn

from kaizen.config.schema import ClassifierConfig
from kaizen.model.networks.heads import mlp
from kaizen.model.statistics import Statistics
from kaizen.training.align import Pool, align

D = 4


def statistics(scale: float, offset: float) -> Statistics:
    """Three classes of 200 images each."""
    means = scale * (nn.functional.one_hot(torch.arange(3), D).double() * 3 + offset)
    return Statistics(torch.tensor([1, 4, 6]), torch.tensor([200] * 3), means, scale**2 * torch.eye(D).double())


def drawn(held: Statistics, place: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = held.covariance.diagonal().sqrt().float()
    return held.means[place].float() + root * torch.randn(count, D, generator=generator)


def test_a_pool_picks_each_of_a_class_features_and_no_others() -> None:
    features, labels = torch.arange(6.0)[:, None], torch.tensor([7, 2, 7, 5, 2, 7])
    pool = Pool.of(features, labels, torch.tensor([2, 3, 5, 7]))
    which = torch.tensor([0, 0, 2, 3, 3, 3])
    chance = torch.tensor([0.0, 0.9, 0.99, 0.1, 0.5, 0.999])
    assert pool.pick(which, chance).flatten().tolist() == [1, 4, 3, 0, 2, 5]
    assert Pool.of(features[:0], labels[:0], torch.tensor([2])).pick(torch.tensor([0, 0]), chance[:2]).tolist() == [
        [0],
        [0],
    ]


@pytest.mark.parametrize("hidden", [[], [16]], ids=["linear", "hidden layer"])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 5.0), (0.05, 0.0)], ids=["rectified", "small and signed"])
def test_it_becomes_the_best_classifier_of_gaussian_classes_and_the_same_each_time(
    scale: float, offset: float, hidden: list[int]
) -> None:
    held = statistics(scale, offset)
    current = drawn(held, 2, 200, 0), torch.full((200,), 6)
    remembered = drawn(held, 0, 5, 1), torch.full((5,), 1)
    settings = ClassifierConfig(align_steps=600, align_lr=0.02)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        classifier = mlp((D, *hidden, 8))
        align(classifier, current, remembered, held, settings, seed=3)
        found.append(classifier)
    assert all(torch.equal(a, b) for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True))
    test = torch.cat([drawn(held, place, 2000, 10 + place) for place in range(3)])
    truth = held.classes.repeat_interleave(2000)
    weight, bias = (layer.float() for layer in held.classifier(0.0))
    best = float((held.classes[(test @ weight.T + bias).argmax(dim=1)] == truth).float().mean())
    mine = float((found[0](test).argmax(dim=1) == truth).float().mean())
    assert mine > best - 0.015
    assert best > 0.95


def test_a_class_of_this_task_is_never_drawn_and_one_of_both_partly() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach())
            return super().forward(inputs)

    held = statistics(1.0, 0.0)
    # Class 4 has half of its 200 images in this task, class 6 all of them; real features are marked by the number 99.
    current = torch.full((300, D), 99.0), torch.tensor([4] * 100 + [6] * 200)
    settings = ClassifierConfig(align_steps=50)
    align(Spy(D, 8), current, (current[0][:0], current[1][:0]), held, settings, seed=0)
    inputs = torch.cat(seen)
    marked = float((inputs == 99.0).all(dim=1).double().mean())
    assert marked == pytest.approx((0 + 0.5 + 1) / 3, abs=0.03)
