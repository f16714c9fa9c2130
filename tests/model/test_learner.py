"""The learner's four terms, the teacher and the momentum twin, against their equations."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.config.schema import Config
from kaizen.losses import contrastive_distillation, nt_xent
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import TERMS, Learner, TeacherOutputs, total
from kaizen.model.teacher import MomentumTwin, Teacher
from kaizen.parallel import ONE_PROCESS, Batch, Parallel
from kaizen.training.measures import projection_std

SMALL = ["--encoder.width", "4", "--method.projector_hidden", "16", "--method.projector_out", "8"]
SMALL += ["--distill.hidden", "16", "--classifier.hidden", "[12]"]
LABELS = torch.tensor([0, 3, -1, 3, 1, -1])


def small(*more: str) -> tuple[Config, Learner]:
    config = resolve(*parse_arguments(["digits", *SMALL, *more]))[1]
    return config, Learner(config, 10, build_distiller(config.distill))


def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 3, 8, 8, generator=generator) for _ in range(2)]


def batch(labels: Tensor = LABELS) -> Batch:
    return Batch(4, 2, int((labels >= 0).sum()))


def old_outputs(config: Config) -> TeacherOutputs:
    generator = torch.Generator().manual_seed(1)
    return TeacherOutputs(
        [torch.randn(6, 8, generator=generator) for _ in range(2)],
        [torch.randn(6, 10, generator=generator) for _ in range(2)],
    )


def test_terms_are_the_equations() -> None:
    config, learner = small()
    learner.eval()
    old = old_outputs(config)
    terms, projections = learner(views(), LABELS, batch(), None, old)
    features = [learner.encoder(v) for v in views()]
    z = [learner.projector(f) for f in features]
    g = [learner.classifier(f) for f in features]
    h = [learner.distill_predictor(p) for p in z]
    expected = {
        "ssl": nt_xent(z[0], z[1], config.method.temperature),
        "distill": contrastive_distillation(h[0], h[1], *old.projections, config.distill.temperature),
        "classifier": sum(F.cross_entropy(logits, LABELS, ignore_index=-1) for logits in g),
        "classifier_distill": sum(F.cross_entropy(a, b.softmax(1)) for a, b in zip(g, old.logits, strict=True)) / 2,
    }
    for name in TERMS:
        assert torch.allclose(terms[name], expected[name], rtol=1e-5), name
        assert terms[name].dtype == torch.float32
    weights = {"ssl": 1.0, "distill": 2.0, "classifier": 3.0, "classifier_distill": 4.0}
    by_hand = sum(weights[name] * terms[name].item() for name in TERMS)
    assert total(terms, weights).item() == pytest.approx(by_hand, rel=1e-5)
    assert all(torch.allclose(a, b) and not a.requires_grad for a, b in zip(projections, z, strict=True))


@pytest.mark.parametrize("stop", [True, False])
def test_stop_gradient_decides_whether_the_classifier_trains_the_encoder(stop: bool) -> None:
    config, learner = small("--classifier.stop_gradient", str(stop).lower())
    terms, _ = learner(views(), LABELS, batch(), None, old_outputs(config))
    (terms["classifier"] + terms["classifier_distill"]).backward()
    assert (learner.encoder.conv1.weight.grad is None) == stop
    assert learner.classifier[0].weight.grad is not None


@pytest.mark.parametrize("hidden", [[], [12], [9, 7]])
def test_the_classifier_has_the_hidden_sizes_asked_for(hidden: list[int]) -> None:
    _, learner = small("--classifier.hidden", str(hidden))
    layers = [part for part in learner.classifier if isinstance(part, torch.nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in layers]
    widths = [learner.encoder.feature_dim, *hidden, 10]
    assert sizes == list(pairwise(widths))
    assert sum(isinstance(part, torch.nn.ReLU) for part in learner.classifier) == len(hidden)
    terms, _ = learner(views(), LABELS, batch())
    terms["classifier"].backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers)


def test_a_batch_without_labels_gives_exactly_zero() -> None:
    _, learner = small()
    nothing = torch.full((6,), -1)
    terms, _ = learner(views(), nothing, batch(nothing))
    assert terms["classifier"].item() == 0.0
    total(terms, dict.fromkeys(TERMS, 1.0)).backward()
    assert learner.classifier[0].weight.grad.abs().sum() == 0


def test_without_a_teacher_only_ssl_and_cross_entropy_count() -> None:
    _, learner = small()
    terms, _ = learner(views(), LABELS, batch())
    assert terms["distill"].item() == terms["classifier_distill"].item() == 0.0


def test_initialisation_is_a_function_of_the_seed_and_of_the_component() -> None:
    _, one = small()
    torch.rand(7)
    _, two = small("--distill.name", "none")
    _, other = small("--run.seed", "1")
    assert all(torch.equal(a, two.state_dict()[n]) for n, a in one.state_dict().items() if n in two.state_dict())
    assert not torch.equal(one.encoder.conv1.weight, other.encoder.conv1.weight)


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_teacher_normalises_as_told_and_never_changes(mode: str, tmp_path: Path) -> None:
    config, learner = small("--teacher.batchnorm", mode)
    learner(views(), LABELS, batch())  # running statistics that are not the initial ones
    file = tmp_path / "student.safetensors"
    save_file({k: v for k, v in learner.state_dict().items() if not k.startswith("method.")}, file)
    teacher = Teacher(file, config, 10, Parallel())
    before = {name: t.clone() for name, t in teacher.network.state_dict().items()}
    said = teacher(views())
    student = learner.train(mode == "batch")
    with torch.no_grad():
        features = [student.encoder(v) for v in views()]
        for v in range(2):
            assert torch.allclose(said.projections[v], student.projector(features[v]), atol=1e-5)
            assert torch.allclose(said.logits[v], student.classifier(features[v]), atol=1e-5)
    teacher(views())
    assert all(torch.equal(t, before[name]) for name, t in teacher.network.state_dict().items())
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_an_old_classifier_that_never_saw_a_label_says_nothing(tmp_path: Path) -> None:
    config, learner = small("--labels.fraction", "0")
    file = tmp_path / "student.safetensors"
    save_file({k: v for k, v in learner.state_dict().items() if not k.startswith("method.")}, file)
    nothing = torch.full((6,), -1)
    old = Teacher(file, config, 10, Parallel())(views())
    terms, _ = learner(views(), nothing, batch(nothing), None, old)
    assert terms["distill"].item() > 0
    assert terms["classifier"].item() == terms["classifier_distill"].item() == 0.0


def test_momentum_twin_follows_by_tau_and_keeps_buffers_of_its_own() -> None:
    _, learner = small("--method.name", "mocov2plus", "--method.queue_size", "8")
    twin = MomentumTwin(learner)
    start = [p.clone() for p in twin.parameters()]
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(1.0)
    twin.update(torch.tensor(0.25))
    for moved, before in zip(twin.parameters(), start, strict=True):
        assert torch.allclose(moved, before + 0.25, atol=1e-6)
    statistics = learner.encoder.bn1.running_mean.clone()
    twin(views())
    assert torch.equal(learner.encoder.bn1.running_mean, statistics)
    assert not torch.equal(twin.encoder.bn1.running_mean, statistics)


def test_the_spread_of_projections_tells_of_collapse() -> None:
    even, one = torch.randn(4000, 16), torch.ones(4000, 16)
    for views, expected in (([even, even], 1.0), ([one, one], 0.0), ([even, one], 0.5)):
        assert projection_std(views, ONE_PROCESS) == pytest.approx(expected, abs=0.01)
    rows = F.normalize(even[:50] + 1, dim=1)
    expected = float(rows.std(dim=0, correction=0).mean() * 4)
    assert projection_std([even[:50] + 1], ONE_PROCESS) == pytest.approx(expected, rel=1e-5)
