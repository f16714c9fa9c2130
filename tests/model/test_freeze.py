"""Frozen first blocks: which parts they are, and that nothing changes them."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.config.schema import Config
from kaizen.data.replay import Memory
from kaizen.errors import ConfigError
from kaizen.model.learner import Learner, Network
from kaizen.model.networks.blocks import FrozenBatchNorm, count_blocks
from kaizen.model.teacher import MomentumTwin, Teacher
from kaizen.parallel import Parallel
from kaizen.training.state import TaskState

SMALL = ("--encoder.width", "4")
VIT = ("--encoder.name", "vit_tiny")
TIMM = ("--encoder.name", "timm:test_resnet")
FIRST = ("encoder.conv1", "encoder.bn1", "encoder.layer1", "encoder.layer2")


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(["digits", "--method.name", "byol", *tokens]))[1]


def frozen_parts(config: Config) -> set[str]:
    """First parts of the names of frozen parameters, with the numbers of blocks."""
    names = [name for name, p in Network(config, 10).encoder.named_parameters() if not p.requires_grad]
    return {".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in names}


@pytest.mark.parametrize(
    ("tokens", "frozen"),
    [
        ([*SMALL, "--encoder.freeze", "0"], set()),
        ([*SMALL, "--encoder.freeze", "2"], {"conv1", "bn1", "layer1", "layer2"}),
        ([*SMALL, "--encoder.freeze", "4"], {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        (
            ["--encoder.name", "vit_tiny", "--encoder.freeze", "1"],
            {"cls_token", "pos_embed", "patch_embed", "blocks.0"},
        ),
        ([*TIMM, "--encoder.freeze", "1"], {"conv1", "bn1", "layer1"}),
    ],
)
def test_the_stem_and_the_first_blocks_are_frozen(tokens: list[str], frozen: set[str]) -> None:
    assert frozen_parts(config_of(*tokens)) == frozen


@pytest.mark.parametrize(("tokens", "count"), [(SMALL, 4), (VIT, 12), (TIMM, 4)])
def test_more_blocks_than_there_are_are_refused(tokens: tuple[str, ...], count: int) -> None:
    assert count_blocks(Network(config_of(*tokens, "--encoder.freeze", str(count)), 10).encoder) == count
    with pytest.raises(ConfigError, match=rf"encoder\.freeze: is {count + 1}; allowed for .*: 0 to {count}$"):
        config_of(*tokens, "--encoder.freeze", str(count + 1))


@pytest.mark.parametrize("tokens", [SMALL, ("--encoder.name", "timm:test_efficientnet")])
def test_frozen_norms_have_the_same_names_and_give_what_a_norm_in_eval_mode_gives(tokens: tuple[str, ...]) -> None:
    free, frozen = (Network(config_of(*tokens, "--encoder.freeze", n), 10).encoder for n in ("0", "2"))
    assert list(free.state_dict()) == list(frozen.state_dict())
    assert any(isinstance(part, FrozenBatchNorm) for part in frozen.modules())
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(free.eval()(images), frozen.eval()(images), atol=1e-6)


def test_an_encoder_that_is_frozen_as_a_whole_does_not_mix_images() -> None:
    encoder = Network(config_of(*SMALL, "--encoder.freeze", "4"), 10).encoder.train()
    assert not encoder.mixes_images
    assert not any(isinstance(part, _BatchNorm) for part in encoder.modules())
    images = torch.randn(3, 3, 8, 8)
    assert torch.allclose(encoder(images)[:1], encoder(images[:1]), atol=1e-5)


@pytest.mark.parametrize("tokens", [SMALL, TIMM])
def test_no_batch_changes_what_is_frozen_in_student_twin_and_teacher(tokens: tuple[str, ...], tmp_path: Path) -> None:
    config, parallel = config_of(*tokens, "--encoder.freeze", "2", "--optim.name", "lars"), Parallel()
    state = TaskState(config, 10, 0, 60, 0.5, {}, tmp_path, parallel)
    state.save_task_end(
        tmp_path / "tasks/task-00",
        lambda _: {"replay": Memory.empty(3, 8).tensors()},
        (3, 8, 8),
        lambda: {"task": 0, "step": 0},
    )
    teacher = Teacher(tmp_path / "tasks/task-00/student.safetensors", config, 10, parallel)
    assert state.twin is not None
    networks = (state.learner, state.twin, teacher.network)
    before = [{n: t.clone() for n, t in net.state_dict().items() if n.startswith(FIRST)} for net in networks]
    views = [torch.randn(6, 3, 8, 8) * 3 + 1 for _ in range(2)]
    state.learner.encoder(views[0]).square().sum().backward()
    state.twin(views)
    teacher(views)
    state.optimizer.step()
    state.twin.update(torch.tensor(0.5))
    for net, held in zip(networks, before, strict=True):
        assert held
        assert all(torch.equal(net.state_dict()[name], t) for name, t in held.items())
    trained = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in trained for n, p in state.learner.named_parameters() if n.startswith(FIRST))


def test_a_twin_copies_frozen_norms() -> None:
    twin = MomentumTwin(Learner(config_of(*SMALL, "--encoder.freeze", "1"), 10, None))
    assert isinstance(twin.encoder.bn1, FrozenBatchNorm)
