"""PFR, PNR and Osiris in the learner: what they read, which negatives they take, and what they leave alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import settings_of
from safetensors.torch import load_file
from sessions import begin, changed_by_steps, more_of
from torch import Tensor
from torch.nn import functional as F

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.losses import (
    byol,
    cross_task,
    decorrelative_distillation,
    info_nce,
    instance_distillation,
    nt_xent,
    pseudo_negative_distillation,
    simsiam,
)
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import Learner
from kaizen.model.methods import REGISTRY, method_class
from kaizen.model.methods.base import Outputs, TeacherOutputs
from kaizen.model.methods.osiris import Osiris
from kaizen.parallel import Batch

SMALL = ["digits", "--encoder.width", "4", "--classifier.hidden", "[12]", "--distill.hidden", "16"]
SMALL += ["--method.projector_hidden", "16", "--method.projector_out", "8"]
LABELS = torch.tensor([0, 3, -1, 3, 1, -1])
N = len(LABELS)
BATCH = Batch(4, 2, 4)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Case:
    """A learner in eval mode, its inputs, and what its networks make of them."""

    def __init__(self, *more: str) -> None:
        self.config: Config = resolve(*parse_arguments([*SMALL, *more]))[1]
        self.learner: Any = Learner(self.config, 10, build_distiller(self.config.distill)).eval()
        views = [random(N, 3, 8, 8, seed=view) for view in range(2)]
        width = self.learner.encoder.feature_dim
        rows = [random(N, size, seed=9 + seed) for seed, size in enumerate((8, 8, 10, 10, width, width))]
        self.old = TeacherOutputs(rows[:2], rows[2:4], None, rows[4:])
        self.twin = [random(N, 8, seed=30 + view) for view in range(2)] if self.learner.method.twin_views else []
        self.terms, _ = self.learner(views, LABELS, BATCH, self.twin, self.old)
        self.features = [self.learner.encoder(view) for view in views]
        self.z = [self.learner.projector(f) for f in self.features]

    def outputs(self) -> Outputs:
        return Outputs(self.z, self.twin, LABELS, self.old, self.features)


def test_pfr_predicts_the_old_encoders_features_from_the_new_ones() -> None:
    case = Case("--distill.name", "pfr")
    p = [case.learner.distill_predictor(f) for f in case.features]
    expected = (simsiam(p[0], case.old.features[0]) + simsiam(p[1], case.old.features[1])) / 2
    assert torch.allclose(case.terms["distill"], expected, atol=1e-6)
    assert case.config.distill.weight == 25
    assert [layer.out_features for layer in case.learner.distill_predictor if hasattr(layer, "out_features")] == [
        16,
        32,
    ]
    case.terms["distill"].backward()
    assert case.learner.encoder.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in case.learner.projector.parameters())
    plain = Case("--distill.name", "none")
    assert torch.equal(case.terms["ssl"], plain.terms["ssl"])


def test_pnr_gives_simclr_the_old_outputs_and_the_distiller_the_new_ones_as_negatives() -> None:
    case = Case("--distill.name", "pnr", "--distill.temperature", "0.5")
    p = [case.learner.distill_predictor(z) for z in case.z]
    expected = pseudo_negative_distillation(*p, *case.z, *case.old.projections, 0.5)
    assert torch.allclose(case.terms["distill"], expected, atol=1e-6)
    ssl = nt_xent(*case.z, 0.2, negatives=torch.cat(case.old.projections))
    assert torch.allclose(case.terms["ssl"], ssl, atol=1e-6)
    assert ssl > nt_xent(*case.z, 0.2) + 0.01


def test_pnr_keeps_queues_of_the_old_outputs_beside_those_of_moco_for_one_task() -> None:
    case = Case("--method.name", "mocov2plus", "--method.queue_size", "7", "--distill.name", "pnr")
    method, temperature = case.learner.method, case.config.method.temperature
    q, k, old = ([F.normalize(z, dim=1) for z in rows] for rows in (case.z, case.twin, case.old.projections))
    p = [F.normalize(case.learner.distill_predictor(z), dim=1) for z in q]
    queues = [torch.cat([method.queue2.keys, method.old_queue2.keys])]
    queues += [torch.cat([method.queue1.keys, method.old_queue1.keys])]
    ssl = [info_nce(q[v], k[1 - v], queues[v], temperature) for v in (0, 1)]
    distill = [info_nce(p[v], old[v], queues[v], 0.2) for v in (0, 1)]
    assert torch.allclose(case.terms["ssl"], (ssl[0] + ssl[1]) / 2, atol=1e-6)
    assert torch.allclose(case.terms["distill"], (distill[0] + distill[1]) / 2, atol=1e-6)
    method.after_step(case.outputs(), BATCH)
    assert torch.allclose(method.old_queue1.keys[:N], old[0])
    assert torch.allclose(method.old_queue2.keys[:N], old[1])
    assert torch.allclose(method.queue1.keys[:N], k[0])
    assert method.of_one_task == ("old_queue",), "the next task's teacher begins with empty hands"
    plain = Case("--method.name", "mocov2plus", "--method.queue_size", "7")
    assert not hasattr(plain.learner.method, "old_queue1")


@pytest.mark.parametrize("given", [None, 0.3])
def test_pnr_pushes_the_old_output_of_the_other_view_away_in_methods_without_negatives(given: float | None) -> None:
    more = [] if given is None else ["--distill.negative_weight", str(given)]
    case = Case("--method.name", "byol", "--method.predictor_hidden", "8", "--distill.name", "pnr", *more)
    p, old = [case.learner.distill_predictor(z) for z in case.z], case.old.projections
    same, other = ((byol(p[0], old[v]) + byol(p[1], old[1 - v])) / 2 for v in (0, 1))
    assert torch.allclose(case.terms["distill"], same - (0.5 if given is None else given) * other, atol=1e-6)
    case = Case("--method.name", "barlow", "--distill.name", "pnr", *more)
    p = [case.learner.distill_predictor(z) for z in case.z]
    away = (simsiam(p[0], old[1]) + simsiam(p[1], old[0])) / 2
    expected = decorrelative_distillation(*p, *old, 0.005, 0.1) - (1 if given is None else given) * away
    assert torch.allclose(case.terms["distill"], expected, atol=1e-5)
    case = Case("--method.name", "vicreg", "--distill.name", "pnr", *more)
    p = [case.learner.distill_predictor(z) for z in case.z]
    mse = [(F.mse_loss(p[0], old[v]) + F.mse_loss(p[1], old[1 - v])) / 2 for v in (0, 1)]
    assert case.config.distill.weight == 25
    assert torch.allclose(case.terms["distill"], mse[0] - (23 / 25 if given is None else given) * mse[1], atol=1e-6)


@pytest.mark.parametrize("name", REGISTRY)
def test_pnr_is_refused_where_it_is_not_defined(name: str) -> None:
    tokens = [*SMALL, "--method.name", name, "--distill.name", "pnr"]
    if method_class(name).pseudo_negatives != "none":
        assert resolve(*parse_arguments(tokens))[1].distill.name == "pnr"
        return
    with pytest.raises(
        ConfigError, match=r"defined for method\.name simclr, mocov2plus, byol, simsiam, barlow, vicreg"
    ):
        resolve(*parse_arguments(tokens))


@pytest.mark.parametrize("more", [["--distill.name", "pnr"], ["--method.name", "byol"]])
def test_a_weight_of_negatives_without_effect_is_refused(more: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"distill\.negative_weight: is 0\.3, but applies to distill\.name pnr with byol"
    ):
        resolve(*parse_arguments([*SMALL, *more, "--distill.negative_weight", "0.3"]))


@pytest.mark.parametrize("stability", ["replay", "distill"])
def test_osiris_is_its_three_losses_on_two_projectors(stability: str) -> None:
    more = ["--method.name", "osiris", "--method.stability", stability, "--method.consolidation", "0.3"]
    case = Case(*more, "--method.temperature", "0.4")
    head = case.learner.method.second
    z, s, o = ([net(f[:4]) for f in rows] for net, rows in _three(case, head))
    u = [head(f[4:]) for f in case.features]
    cross = (cross_task(*s, *u, 0.4) + cross_task(*u, *s, 0.4)) / 2
    kept = nt_xent(*u, 0.4) if stability == "replay" else instance_distillation(*s, *o, 0.4)
    assert torch.allclose(case.terms["ssl"], nt_xent(*z, 0.4) + 0.3 * (cross + kept), atol=1e-5)
    assert case.learner.method.needs_teacher() == (stability == "distill")
    assert case.config.distill.name == "none"
    case.terms["ssl"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in (*head.parameters(), *case.learner.projector[:1].parameters())
    )


def _three(case: Case, head: torch.nn.Module) -> list[tuple[torch.nn.Module, list[Tensor]]]:
    return [(case.learner.projector, case.features), (head, case.features), (head, case.old.features)]


def test_osiris_gives_each_process_its_share_even_one_without_replay_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, of which the first holds no replay image; gathered rows are played back from one process."""
    torch.manual_seed(0)
    for stability in ("replay", "distill"):
        method = Osiris(settings_of("osiris", stability=stability)).double()
        method.build_heads(5, 4)
        method.double()
        z, f, o = ([torch.randn(10, dim, dtype=torch.float64) for _ in range(2)] for dim in (8, 5, 5))
        played: list[Tensor] = []

        def record(batch: Batch, local: Tensor, played: list[Tensor] = played) -> Tensor:
            played.append(local)
            return local

        def play(batch: Batch, local: Tensor, played: list[Tensor] = played) -> Tensor:
            whole = played.pop(0)
            played.append(whole)
            assert torch.allclose(whole[batch.rows(whole.device)], local)
            return whole

        monkeypatch.setattr(Batch, "gather", record)
        one = method.loss(Outputs(z, [], LABELS, TeacherOutputs([], [], None, o), f), Batch(8, 2, 0))
        monkeypatch.setattr(Batch, "gather", play)
        shares = []
        for rank in range(3):
            batch = Batch(8, 2, 0, rank, 3)
            mine = [[rows[batch.rows(rows.device)] for rows in pair] for pair in (z, f, o)]
            old = TeacherOutputs([], [], None, mine[2])
            shares.append(method.loss(Outputs(mine[0], [], LABELS, old, mine[1]), batch))
        assert Batch(8, 2, 0, 0, 3).replay_alone().sizes == (0, 1, 1)
        assert torch.stack(shares).mean().item() == pytest.approx(one.item(), rel=1e-12)


def test_osiris_second_projector_waits_for_the_memory_and_starts_as_the_first(tmp_path: Path) -> None:
    arguments = ["--method.name", "osiris", *more_of("osiris"), "--classifier.distill_weight", "0"]
    zero = begin(arguments, tmp_path / "zero", task=0)
    before = [p.clone() for p in zero.state.learner.method.second.parameters()]
    for _ in range(3):
        zero.step()
    assert all(map(torch.equal, zero.state.learner.method.second.parameters(), before)), "not even decayed"
    zero.close()
    one = begin(arguments, tmp_path / "one")
    student = load_file(tmp_path / "one/run/tasks/task-00/student.safetensors")
    held = one.state.learner.method.second.state_dict()
    assert all(torch.equal(held[name], student[f"projector.{name}"]) for name in held)
    assert one.state.teacher is None
    one.step()
    assert not torch.equal(one.state.learner.method.second[0].weight, student["projector.0.weight"])
    one.close()
    distilled = begin([*arguments, "--method.stability", "distill"], tmp_path / "one")
    assert distilled.state.teacher is not None, "for the method alone"
    assert all(torch.isfinite(tensor).all() for tensor in changed_by_steps(distilled))
    distilled.close()


def test_osiris_without_a_memory_is_simclr_on_the_current_images() -> None:
    case = Case("--method.name", "osiris", "--method.temperature", "0.4")
    alone = case.learner.method.loss(case.outputs(), Batch(N, 0, 4))
    assert torch.allclose(alone, nt_xent(*case.z, 0.4), atol=1e-6)
    alone.backward()
    assert all(p.grad is not None and not p.grad.any() for p in case.learner.method.second.parameters())
    case.learner.method.after_backward(Batch(N, 0, 4))
    assert all(p.grad is None for p in case.learner.method.second.parameters())
