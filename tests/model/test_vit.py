"""ViTs: their architecture, valid configurations, and small runs of two tasks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import log_of, run_of, snapshots
from safetensors.torch import load_file
from small_sources import table, write_parquet
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.cli.shipped import shipped_recipes
from kaizen.commands.train import main
from kaizen.config.encoder import EncoderConfig
from kaizen.config.schema import Config
from kaizen.data.load import load_stream
from kaizen.errors import ConfigError
from kaizen.evaluation.evaluator import Evaluator
from kaizen.model.learner import Learner, Network
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.teacher import MomentumTwin, read_network
from kaizen.parallel import Parallel
from kaizen.training.state import TaskState

SMALL = [
    *("--data.image_size", "8", "--encoder.name", "vit_tiny", "--encoder.patch", "4", "--stream.tasks", "2"),
    *("--optim.epochs", "2", "--optim.warmup_epochs", "0", "--optim.batch", "6", "--log.every_steps", "1"),
    *("--replay.batch", "4", "--replay.per_class", "2", "--replay.policy", "herding", "--classifier.hidden", "[]"),
    *("--method.projector_hidden", "16", "--distill.hidden", "16", "--eval.readers", "[classifier, knn]"),
]


@pytest.fixture
def small(cache: str, tmp_path: Path) -> list[str]:
    """Arguments of a run over two tasks of 12 and 6 images."""
    source = write_parquet(tmp_path / "data", table(18), table(9, 100))
    return [*SMALL, "--data.source", source, "--data.cache_dir", cache, "--run.dir", str(tmp_path / "run")]


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(tokens))[1]


def built(patch: int = 4, size: int = 8) -> nn.Module:
    return build_encoder(EncoderConfig(name="vit_tiny", patch=patch), size)


def torchvisions_names(name: str) -> str:
    """The name in torchvision's ViT of a parameter of timm's ViT."""
    for ours, theirs in (
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj", "conv_proj"),
        ("blocks.", "encoder.layers.encoder_layer_"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj", "self_attention.out_proj"),
        ("fc1", "0"),
        ("fc2", "3"),
    ):
        name = name.replace(ours, theirs)
    return f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


@pytest.mark.parametrize(("name", "dim", "heads"), [("vit_tiny", 192, 3), ("vit_small", 384, 6), ("vit_base", 768, 12)])
def test_vits_equal_torchvisions(name: str, dim: int, heads: int) -> None:
    tells = name == "vit_tiny"  # the smallest by its values, the rest by their shapes
    with torch.device("cpu" if tells else "meta"):
        ours = build_encoder(EncoderConfig(name=name, patch=4), 8).eval()  # type: ignore[arg-type]
        theirs = VisionTransformer(8, 4, num_layers=12, num_heads=heads, hidden_dim=dim, mlp_dim=4 * dim).eval()
    theirs.heads = nn.Identity()
    held = {torchvisions_names(key): t for key, t in ours.state_dict().items()}
    assert {key: t.shape for key, t in held.items()} == {key: t.shape for key, t in theirs.state_dict().items()}
    assert (ours.feature_dim, ours.blocks[11].attn.num_heads) == (dim, heads)
    assert not any(isinstance(part, nn.Dropout) and part.p > 0 for part in ours.modules())
    if tells:
        theirs.load_state_dict(held, strict=True)
        images = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def test_smaller_crops_and_half_the_precision_give_features_as_well() -> None:
    encoder = built().eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 4, 4)).shape == (2, 192)
        images = torch.randn(1, 3, 8, 8)
        full, half = encoder(images), encoder.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(full, half.float()).min() > 0.99


@pytest.mark.parametrize(
    ("size", "patch"), [(224, 16), (160, 16), (96, 8), (64, 8), (100, 4), (32, 4), (28, 4), (30, 2), (8, 2), (4, 2)]
)
def test_the_patch_follows_the_size_of_the_images_unless_it_is_given(size: int, patch: int) -> None:
    vit = ("--encoder.name", "vit_small", "--data.image_size", str(size))
    assert config_of("digits", *vit).encoder.patch == patch
    assert config_of("digits", *vit, "--encoder.patch", str(size)).encoder.patch == size


def test_a_vit_is_built_for_the_sources_own_size() -> None:
    config = config_of("cifar100-simclr", "--encoder.name", "vit_tiny")
    assert (config.data.image_size, config.encoder.patch) == (32, 4)
    assert config_of("cifar100-simclr").data.image_size is None, "ResNets take images of any size"
    assert Network(config, 10).encoder.pos_embed.shape == (1, 65, 192)


def test_another_kind_of_encoder_leaves_the_recipes_encoder_keys_behind() -> None:
    assert config_of("digits", "--encoder.name", "vit_tiny").encoder.width == 64
    assert config_of("imagenet100-simclr", "--encoder.name", "vit_small").encoder.stem == "cifar"
    assert config_of("digits-vit", "--encoder.name", "resnet18").encoder.patch is None
    assert config_of("digits", "--encoder.name", "resnet34").encoder.width == 16, "all ResNets have the same keys"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["--encoder.width", "16"], "encoder.width: is 16; allowed: 64, as vit_tiny has no width"),
        (["--encoder.stem", "imagenet"], "encoder.stem: is imagenet; allowed: cifar, as vit_tiny has no stem"),
        (["--encoder.norm", "group"], "encoder.norm: is group; allowed: batch, as vit_tiny has no norm"),
        (["--encoder.stem_padding", "2"], "encoder.stem_padding: is 2; allowed: 1, as vit_tiny has no stem_padding"),
        (["--encoder.patch", "3"], "encoder.patch: is 3; allowed for images of 8 pixels: 1, 2, 4, 8"),
        (["--data.image_size", "9"], "encoder.patch: is null; allowed for images of 9 pixels: 1, 3, 9"),
        (["--data.source", "disk:there"], "data.image_size: is null; vit_tiny needs the side of the images, which"),
        (["--encoder.name", "resnet18", "--encoder.patch", "2"], "encoder.patch: is 2; allowed: null, as resnet18"),
        (["--encoder.name", "vit_huge"], "encoder.name: is 'vit_huge'; did you mean vit_base? allowed: "),
    ],
)
def test_what_does_not_fit_a_vit_ends_with_code_2_and_one_line(
    tokens: list[str], said: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["digits", "--encoder.name", "vit_tiny", "--run.dir", str(tmp_path / "run"), *tokens]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_small_crops_are_cut_into_whole_patches(tmp_path: Path) -> None:
    crops = "encoder: {name: vit_tiny, patch: 4}\nmethod: {name: swav}\nviews: [{}, {}, {size: 4}, {size: SIDE}]"
    (tmp_path / "crops.yaml").write_text(crops.replace("SIDE", "8"))
    assert config_of(str(tmp_path / "crops.yaml")).views[3].size == 8
    (tmp_path / "crops.yaml").write_text(crops.replace("SIDE", "6"))
    with pytest.raises(ConfigError, match=r"views\.3\.size: is 6; allowed: multiples of 4"):
        config_of(str(tmp_path / "crops.yaml"))


def test_timm_is_loaded_only_where_a_vit_is_built() -> None:
    code = (
        "import sys; from kaizen.cli.resolve import resolve; from kaizen.model.learner import Network\n"
        "resolve('digits', {'encoder.name': 'vit_tiny'}); Network(resolve('digits', {})[1], 10)\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_initialisation_follows_the_seed() -> None:
    tokens = ["digits-vit", "--encoder.patch", "8"]
    one, other = (Network(config_of(*tokens, "--run.seed", seed), 10).encoder for seed in ("0", "1"))
    torch.rand(7)
    again = Network(config_of(*tokens), 10).encoder
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.pos_embed, other.pos_embed)


def test_embeddings_are_neither_decayed_nor_adapted(tmp_path: Path) -> None:
    config = config_of("digits", "--encoder.name", "vit_tiny", "--optim.name", "lars", "--optim.weight_decay", "0.1")
    state = TaskState(config, 10, 0, 291, 0.5, {}, tmp_path, Parallel())
    encoder = state.learner.encoder
    assert set(encoder.plain) == encoder.no_weight_decay() & {name for name, _ in encoder.named_parameters()}
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    for p in encoder.parameters():
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    for name, p in encoder.named_parameters():
        is_plain = p.ndim == 1 or name in encoder.plain
        assert torch.allclose(p.detach(), before[name] - 0.5, atol=1e-6) == is_plain, name


@pytest.mark.parametrize(
    ("encoder", "blocks"),
    [
        (["--encoder.name", "vit_tiny", "--encoder.patch", "8"], 12),
        (["--encoder.width", "4"], 8),
        (["--encoder.name", "resnet50", "--encoder.width", "4"], 16),
    ],
)
def test_an_encoder_names_the_blocks_that_are_sharded_one_by_one(encoder: list[str], blocks: int) -> None:
    learner = Learner(config_of("digits", *encoder), 10, None)
    (name,) = learner.encoder.block_names
    assert sum(type(part).__name__ == name for part in learner.modules()) == blocks


def test_a_twin_follows_a_vit() -> None:
    learner = Learner(config_of("digits", "--encoder.name", "vit_tiny", "--method.name", "byol"), 10, None)
    twin = MomentumTwin(learner)
    with torch.no_grad():
        learner.encoder.pos_embed.add_(1.0)
    before = twin.encoder.pos_embed.clone()
    twin.update(torch.tensor(0.25))
    assert torch.allclose(twin.encoder.pos_embed, before + 0.25, atol=1e-6)


def test_a_vit_learns_two_tasks_goes_on_and_is_evaluated(small: list[str]) -> None:
    run, arguments = run_of(small), ["digits-vit", *small, "--encoder.drop_path", "0.3"]
    assert main(arguments) == 0
    lines = log_of(run)
    assert {line["task"] for line in lines} == {0, 1}
    assert all(line["loss/distill"] > 0 for line in lines if line["task"] == 1)
    results = json.loads((run / "results.json").read_text())
    config = config_of(*arguments)
    students = [load_file(run / f"tasks/task-{task:02d}/student.safetensors") for task in (0, 1)]
    for key in ("cls_token", "pos_embed", "blocks.11.mlp.fc2.weight", "norm.bias"):
        assert not torch.equal(students[0][f"encoder.{key}"], students[1][f"encoder.{key}"]), key
    network = read_network(run / "tasks/task-01/student.safetensors", config)
    row = Evaluator(config, load_stream(config), Parallel()).row(network, 1, ("classifier", "knn")).accuracies
    assert {reader: results["readers"][reader]["matrix"][1] for reader in row} == row
    ended = snapshots(run)
    shutil.rmtree(run / "tasks/task-01")
    assert main(arguments) == 0
    assert snapshots(run) == ended, "task 1 trained again from the end of task 0 is the same, bit for bit"


def test_swav_trains_a_vit_with_small_crops(small: list[str], tmp_path: Path) -> None:
    crop = "{size: 4, crop_scale: [0.2, 0.5], jitter_p: 0, gray_p: 0}"
    (tmp_path / "crops.yaml").write_text(shipped_recipes()["digits-swav"] + f"  - {crop}\n")
    assert main([str(tmp_path / "crops.yaml"), *small]) == 0
    assert all(line["loss/ssl"] > 0 for line in log_of(run_of(small)))
