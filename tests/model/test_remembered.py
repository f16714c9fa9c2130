"""The learner's terms where images are mixed or logits are stored, against loops written from the equations."""

import pytest
import torch
from torch import Tensor

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import Learner, Remembered, total
from kaizen.parallel import Batch

SMALL = ["--encoder.width", "4", "--method.projector_hidden", "16", "--method.projector_out", "8"]
SMALL += ["--distill.hidden", "16", "--classifier.hidden", "[12]"]
LABELS, OTHERS = torch.tensor([0, 3, -1, 3, 1, -1]), torch.tensor([2, -1, 5, -1, 7, -1])


def learner(*more: str) -> Learner:
    config = resolve(*parse_arguments(["digits", *SMALL, *more]))[1]
    return Learner(config, 10, build_distiller(config.distill)).eval()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views() -> list[Tensor]:
    return [random(6, 3, 8, 8, seed=view) for view in range(2)]


def logits_of(network: Learner) -> list[Tensor]:
    return [network.classifier(network.encoder(view)).log_softmax(dim=1).detach() for view in views()]


def test_mixed_images_are_classified_by_mixups_rule_over_the_available_labels() -> None:
    network, shares = learner(), [0.3, 0.0, 1.0, 0.5, 0.9, 0.2]
    available = int((LABELS >= 0).sum() + (OTHERS >= 0).sum())
    batch, remembered = Batch(6, 0, available), Remembered(labels=OTHERS, shares=torch.tensor(shares))
    terms, _ = network(views(), LABELS, batch, remembered=remembered)
    expected = 0.0
    for rows in logits_of(network):
        for i in range(6):
            if LABELS[i] >= 0:
                expected -= 2 * shares[i] * float(rows[i, LABELS[i]]) / available
            if OTHERS[i] >= 0:
                expected -= 2 * (1 - shares[i]) * float(rows[i, OTHERS[i]]) / available
    assert terms["classifier"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["classifier_distill"].item() == 0
    plain, _ = network(views(), LABELS, batch)
    assert terms["ssl"].item() == plain["ssl"].item(), "it sees the mixed images as any others"


def test_a_loss_that_reads_labels_sees_none_of_mixed_images() -> None:
    network, batch = learner("--method.name", "supcon"), Batch(6, 0, 7)
    mixed, _ = network(views(), LABELS, batch, remembered=Remembered(OTHERS, torch.full((6,), 0.3)))
    unlabelled, _ = network(views(), torch.full((6,), -1), batch)
    labelled, _ = network(views(), LABELS, batch)
    assert mixed["ssl"].item() == unlabelled["ssl"].item() != labelled["ssl"].item()


@pytest.mark.parametrize("replay", [0, 1, 4])
def test_stored_logits_are_compared_on_replay_images_of_both_views(replay: int) -> None:
    network = learner("--classifier.distill", "stored_logits", "--classifier.stop_gradient", "false")
    stored, batch = random(replay, 10, seed=5), Batch(6 - replay, replay, int((LABELS >= 0).sum()))
    terms, _ = network(views(), LABELS, batch, remembered=Remembered(logits=stored))
    expected = 0.0
    for view in views():
        logits = network.classifier(network.encoder(view))[6 - replay :]
        for own, old in zip(logits.flatten().tolist(), stored.flatten().tolist(), strict=True):
            expected += (own - old) ** 2 / (10 * replay) / 2
    assert terms["classifier_distill"].item() == pytest.approx(expected, rel=1e-5)
    total(terms, {"ssl": 0.0, "distill": 0.0, "classifier": 0.0, "classifier_distill": 1.0}).backward()
    assert network.encoder.conv1.weight.grad is not None
    assert bool(network.encoder.conv1.weight.grad.any()) == (replay > 0), "the memory trains the encoder"
