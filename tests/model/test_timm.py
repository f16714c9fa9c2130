"""Models of timm as encoders: what they give, what is refused, and a small run of two tasks."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from runs import log_of, run_of, snapshots
from small_sources import table, write_parquet
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config.encoder import EncoderConfig
from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.model.learner import Network
from kaizen.model.networks.encoders import Encoder, build_encoder
from kaizen.model.networks.heads import forget_running_statistics
from kaizen.model.networks.timm_encoder import probe
from kaizen.parallel import GlobalBatchNorm, check_encoder
from kaizen.parallel.norm import global_batch_norms
from kaizen.training.defaults import Facts, suit

TIMM = ("--encoder.name", "timm:test_resnet")
SMALL = [
    *("--data.image_size", "8", "--stream.tasks", "2", "--optim.epochs", "2", "--optim.warmup_epochs", "0"),
    *("--optim.batch", "6", "--log.every_steps", "1", "--replay.batch", "4", "--replay.per_class", "2"),
    *("--method.projector_hidden", "16", "--distill.hidden", "16", "--classifier.hidden", "[]"),
    *("--eval.readers", "[classifier]", "--run.checkpoint_every", "1"),
]


def built(name: str, size: int = 32, **keys: int) -> Encoder:
    return build_encoder(EncoderConfig(name=f"timm:{name}", stem="cifar", **keys), size)  # type: ignore[arg-type]


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(["digits", *tokens]))[1]


@pytest.mark.parametrize(
    ("name", "dim", "block", "mixes"),
    [
        ("test_resnet", 96, ("BasicBlock",), True),
        ("test_vit", 64, ("Block",), False),
        ("test_convnext", 64, ("ConvNeXtBlock",), False),
        ("test_efficientnet", 256, (), True),
        ("swin_tiny_patch4_window7_224", 768, ("SwinTransformerBlock",), False),
    ],
)
def test_a_model_of_timm_gives_features_and_says_what_it_is(
    name: str, dim: int, block: tuple[str, ...], mixes: bool
) -> None:
    encoder = built(name).train()
    before = torch.get_rng_state()
    features = encoder(torch.zeros(2, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before), "a step that draws numbers would not repeat when a run resumes"
    assert features.shape == (2, encoder.feature_dim) == (2, dim)
    assert (encoder.block_names, encoder.mixes_images) == (block, mixes)
    assert set(encoder.plain) <= {key for key, _ in encoder.named_parameters()}
    assert not any(key.startswith(("fc.", "head.fc.")) for key in encoder.state_dict()), "names are timm's, headless"


def test_initialisation_follows_the_seed_and_draws_nothing_from_the_rest() -> None:
    first, other = (Network(config_of(*TIMM, "--run.seed", seed), 10) for seed in ("0", "1"))
    torch.rand(3)
    again = Network(config_of(*TIMM), 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.conv1[0].weight, other.encoder.conv1[0].weight)


def test_a_norm_of_timm_keeps_its_activation_when_it_is_made_global() -> None:
    torch.manual_seed(0)
    alone = built("test_efficientnet").eval()
    for part in alone.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.bias)
            nn.init.uniform_(part.running_var, 0.5, 2)
    together = global_batch_norms(copy.deepcopy(alone), torch.device("cpu"))
    norms = [part for part in together.modules() if isinstance(part, _BatchNorm)]
    assert any(isinstance(part, BatchNormAct2d) for part in alone.modules())
    assert all(type(part) is GlobalBatchNorm and not part.training for part in norms)
    assert list(together.state_dict()) == list(alone.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(copy.deepcopy(together)(images), alone(images), atol=1e-6)


def test_a_norm_of_timm_forgets_its_statistics() -> None:
    encoder, images = built("test_efficientnet").train(), torch.randn(4, 3, 32, 32)
    expected = encoder(images)
    forget_running_statistics(encoder)
    assert torch.equal(encoder.eval()(images), expected)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["timm:test_resnett"], r"which timm does not have; did you mean timm:test_resnet"),
        (["timm:resnet18.a9"], r"timm has no such weights; allowed: timm:resnet18\.a1_in1k"),
        (["timm:"], r"encoder\.name: is 'timm:'; .*allowed: resnet18, .*, timm:NAME"),
        (["timm:test_vit"], r"encoder\.name: is timm:test_vit, which does not take images of 8 pixels: .*patch size"),
        (["timm:test_resnet", "--encoder.width", "16"], r"encoder\.width: is 16; allowed: 64, as timm fixes it by the"),
        (["timm:test_resnet", "--encoder.patch", "4"], r"encoder\.patch: is 4; allowed: null"),
        (["timm:test_resnet", "--encoder.norm", "group"], r"encoder\.norm: is group; allowed: batch"),
        (["timm:test_resnet", "--encoder.freeze", "5"], r"encoder\.freeze: is 5; allowed for timm:test_resnet: 0 to 4"),
        (["timm:test_resnet", "--data.source", "disk:there"], r"data\.image_size: is null; timm:test_resnet needs"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tokens: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of("--encoder.name", *tokens)


def test_a_model_that_draws_or_gives_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x.mean(dim=(2, 3)), 0.5) if self.draws else x

    monkeypatch.setattr("kaizen.model.networks.timm_encoder._check_name", lambda arch: None)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: Odd())
    for draws, said in ((True, "draws random numbers in training"), (False, r"gives a tensor of shape \[2, 3, 8, 8\]")):
        Odd.draws = draws
        probe.cache_clear()
        with pytest.raises(ConfigError, match=said):
            probe("timm:odd", 8)
    probe.cache_clear()


def test_small_crops_are_tried_as_well(tmp_path: Path) -> None:
    recipe = (
        "encoder: {name: 'timm:test_vit'}\ndata: {image_size: 32}\nmethod: {name: swav}\nviews: [{}, {}, {size: N}]"
    )
    (tmp_path / "fits.yaml").write_text(recipe.replace("N", "16"))
    assert resolve(str(tmp_path / "fits.yaml"), {})[1].views[2].size == 16
    (tmp_path / "not.yaml").write_text(recipe.replace("N", "20"))
    with pytest.raises(ConfigError, match="does not take images of 20 pixels"):
        resolve(str(tmp_path / "not.yaml"), {})


def test_the_optimizer_suits_the_norms_of_the_model() -> None:
    facts = Facts((100, 100), 10, 32)
    for name, optimizer in (("test_resnet", "lars"), ("test_vit", "adamw")):
        tokens = ("--encoder.name", f"timm:{name}", "--data.image_size", "32", "--optim.name", "auto")
        assert suit(config_of(*tokens), facts)[0].optim.name == optimizer


def test_fsdp_takes_models_without_batchnorm() -> None:
    check_encoder(built("test_convnext"), "timm:test_convnext")
    with pytest.raises(ConfigError, match=r"encoder\.name: is timm:test_resnet, which has BatchNorm"):
        check_encoder(built("test_resnet"), "timm:test_resnet")


def test_a_model_of_timm_learns_two_tasks_and_goes_on(cache: str, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "data", table(18), table(9, 100))
    small = [*SMALL, "--data.source", source, "--data.cache_dir", cache, "--run.dir", str(tmp_path / "run")]
    arguments, run = ["digits", *small, *TIMM, "--method.name", "byol"], run_of(small)
    assert main(arguments) == 0
    assert all(line["loss/distill"] != 0 for line in log_of(run) if line["task"] == 1)
    ended = snapshots(run)
    shutil.rmtree(run / "tasks/task-01")
    assert main(arguments) == 0
    assert snapshots(run) == ended, "task 1 resumed at its last checkpoint is the same, bit for bit"
