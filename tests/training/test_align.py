"""Alignment of the classifier: which features it sees, and that it finds the best classifier for Gaussian classes."""

import torch
from torch import nn

from kaizen.config.schema import ClassifierConfig
from kaizen.model.statistics import Statistics
from kaizen.training.align import align, features_missing, memory_rows

D = 4


def statistics(counts: list[int], classes: list[int] | None = None) -> Statistics:
    classes = classes or list(range(len(counts)))
    means = torch.nn.functional.one_hot(torch.arange(len(counts)), D).double() * 3 + 5
    return Statistics(torch.tensor(classes), torch.tensor(counts), means, torch.eye(D).double())


def test_every_class_is_brought_to_the_size_of_the_tasks_mean_class() -> None:
    held = statistics([100, 30, 20, 40], [0, 3, 5, 9])
    labels = torch.tensor([5] * 20 + [9] * 10)
    # Two classes of this task with 20 and 10 images: 15 each. Class 9 came before too, with 30 of its 40.
    assert features_missing(held, labels).tolist() == [15, 15, 0, 11]
    assert features_missing(held, labels[:0]).tolist() == [48, 48, 48, 48], "a task without labels"


def test_the_memorys_images_are_repeated_to_a_quarter_and_draws_are_the_rest() -> None:
    held = statistics([100, 30, 20], [0, 3, 5])
    rows, drawn = memory_rows(held, torch.tensor([40, 8, 0]), torch.tensor([0, 3, 0, 5, 7]))
    assert rows.tolist() == [0] * 5 + [1] * 2 + [2] * 5
    assert drawn.tolist() == [30, 6, 0]
    rows, drawn = memory_rows(held, torch.tensor([40, 8, 0]), torch.tensor([], dtype=torch.int64))
    assert (rows.tolist(), drawn.tolist()) == ([], [40, 8, 0])


def test_a_linear_classifier_becomes_the_best_one_for_gaussian_classes_and_the_same_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    held = statistics([200, 200, 200])
    labels = torch.full((200,), 2)
    features = (held.means[2].float() + torch.randn(200, D, generator=generator)).clamp(min=0)
    none = features[:0], labels[:0]
    settings = ClassifierConfig(align_passes=30, align_lr=0.02)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        classifier = nn.Linear(D, 3)
        align(classifier, (features, labels), none, held, settings, seed=3)
        found.append(classifier)
    assert torch.equal(found[0].weight, found[1].weight)
    truth = torch.arange(3).repeat_interleave(2000)
    test = held.means.float()[truth] + torch.randn(6000, D, generator=generator)
    weight, bias = held.classifier(0.0)
    best = float(((test @ weight.float().T + bias.float()).argmax(dim=1) == truth).float().mean())
    mine = float((found[0](test).argmax(dim=1) == truth).float().mean())
    assert mine > best - 0.01
    assert best > 0.95
