"""Pretrained weights: files of torchvision, timm and other runs, and a run that starts from them."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torchvision
from runs import run_of, snapshots
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config.encoder import EncoderConfig
from kaizen.errors import ConfigError
from kaizen.model.learner import Network
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.weights import fitted, named_source
from kaizen.model.pretrained import FILE, keep_pretrained, load_pretrained, recorded
from kaizen.parallel import Parallel


def built(size: int | None = None, **keys: object) -> nn.Module:
    return build_encoder(EncoderConfig.model_validate(keys), size)


def taken(tensors: dict[str, Tensor], encoder: nn.Module) -> list[str]:
    """Load a file's tensors into an encoder; what the user is told."""
    found, notes = fitted(tensors, encoder, "some.safetensors")
    assert not encoder.load_state_dict(found, strict=False).unexpected_keys
    return notes


def test_torchvisions_resnet_loads_and_its_classifier_is_left_out() -> None:
    theirs, ours = torchvision.models.resnet18().eval(), built(stem="imagenet").eval()
    notes = taken(theirs.state_dict(), ours)
    assert notes == ["left out fc.bias, fc.weight, the classifier of the file"]
    theirs.fc, images = nn.Identity(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_another_stem_starts_at_random_and_is_told() -> None:
    ours = built(stem="cifar")
    stem = ours.conv1.weight.detach().clone()
    notes = taken(torchvision.models.resnet18().state_dict(), ours)
    assert "the stem (conv1, bn1) starts at random: the file's is 7 x 7, the encoder's 3 x 3" in notes
    assert torch.equal(ours.conv1.weight, stem)


def test_torchvisions_vit_loads_by_its_names() -> None:
    theirs = VisionTransformer(8, 4, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768).eval()
    ours = built(8, name="vit_tiny", patch=4).eval()
    taken(theirs.state_dict(), ours)
    theirs.heads, images = nn.Identity(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def test_position_embeddings_of_another_grid_are_resampled_as_timm_does() -> None:
    large, small = built(16, name="vit_tiny", patch=4), built(8, name="vit_tiny", patch=4)
    notes = taken({f"backbone.{name}": t for name, t in large.state_dict().items()}, small)
    expected = resample_abs_pos_embed(large.pos_embed, [2, 2], num_prefix_tokens=1)
    assert torch.allclose(small.pos_embed, expected)
    assert notes == ["pos_embed is resampled from [1, 17, 192] to [1, 5, 192]"]


@pytest.mark.parametrize("prefix", ["encoder.", "module.encoder_q.", "_orig_mod.backbone."])
def test_what_programs_put_before_names_is_understood(prefix: str) -> None:
    one, other = built(width=4), built(width=4)
    tensors = {f"{prefix}{name}": t for name, t in one.state_dict().items()} | {"projector.0.weight": torch.ones(2)}
    if prefix != "encoder.":
        del tensors["projector.0.weight"]
    assert taken(tensors, other) == []
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_file_that_does_not_fit_is_refused_with_the_first_tensors() -> None:
    tensors = built(width=8).state_dict()
    with pytest.raises(ConfigError, match=r"does not fit .*conv1.weight is \[8, 3, 7, 7\], the encoder's is \[4, 3"):
        fitted(tensors, built(width=4), "x")
    del tensors["bn1.weight"]
    with pytest.raises(ConfigError, match=r"\(1 missing, 1 unknown, 0 of another shape\): lacks bn1.weight; has unkn"):
        fitted(tensors | {"odd": torch.ones(1)}, built(width=8), "x")
    with pytest.raises(ConfigError, match=r"in which bn1.bias is not finite"):
        fitted(built(width=4).state_dict() | {"bn1.bias": torch.full((4,), torch.nan)}, built(width=4), "x")


@pytest.mark.parametrize(
    ("keys", "source"),
    [
        ({"weights": "auto", "name": "resnet50"}, "hub:timm/resnet50.a1_in1k"),
        ({"weights": "auto", "name": "vit_small", "patch": 8}, "hub:timm/vit_small_patch8_224.dino"),
        ({"weights": "auto", "name": "vit_tiny", "patch": 4}, "hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ({"weights": "auto", "name": "timm:resnet18.tv_in1k"}, "hub:timm/resnet18.tv_in1k"),
        ({"weights": "hub:own/er:a/b.safetensors"}, "hub:own/er:a/b.safetensors"),
        ({"weights": "hub:own/er"}, "hub:own/er"),
    ],
)
def test_the_source_is_named_in_full(keys: dict[str, object], source: str) -> None:
    assert named_source(EncoderConfig.model_validate(keys)) == source


def test_nothing_is_published_for_a_narrow_resnet() -> None:
    with pytest.raises(
        ConfigError, match=r"is auto, but resnet18 is published with encoder\.width 64 and encoder\.norm"
    ):
        named_source(EncoderConfig(weights="auto", width=16))


@pytest.mark.parametrize("weights", ["a.pth", "hub:own/er:pytorch_model.bin", "hub:own", "weights", "a.txt"])
def test_other_sources_are_refused_and_pickles_with_the_way_to_convert_them(weights: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.weights: is '.*; allowed: ") as error:
        resolve("digits", {"encoder.weights": weights})
    assert ("torch.load(" in str(error.value)) == weights.endswith((".pth", ".bin"))


def test_weights_of_the_hub_are_kept_with_their_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hub/snapshots/abc123/model.safetensors"
    file.parent.mkdir(parents=True)
    config = resolve("digits", {"encoder.weights": "hub:own/er", "encoder.width": "4"})[1]
    theirs = Network(config.model_copy(update={"run": config.run.model_copy(update={"seed": 7})}), 10).encoder
    save_file(theirs.state_dict(), file)
    asked = []

    def download(*of: str) -> str:
        asked.append(of)
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (line,) = keep_pretrained(config, tmp_path, Parallel())
    assert line.startswith("weights             hub:own/er, revision abc123, sha256 ")
    held = recorded(tmp_path)
    assert held is not None
    assert (held["source"], held["revision"], len(held["sha256"])) == ("hub:own/er", "abc123", 64)
    assert len(keep_pretrained(config, tmp_path, Parallel())) == len(asked) == 1, "the hub is asked once"
    ours = Network(config, 10).encoder
    load_pretrained(ours, config, tmp_path)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    config = resolve("digits", {"encoder.weights": "hub:own/er"})[1]
    with pytest.raises(ConfigError, match=r"model\.safetensors of own/er cannot be had from the hub"):
        keep_pretrained(config, tmp_path, Parallel())


def test_a_run_starts_from_another_ones_weights_frozen_and_needs_the_file_no_more(
    undisturbed: Path, tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "old.safetensors", run_of(tiny)
    theirs = load_file(undisturbed / "tasks/task-04/student.safetensors")
    save_file(theirs, file)
    arguments = [*tiny, "--encoder.weights", str(file), "--encoder.freeze", "3", "--eval.readers", "[knn]"]
    arguments += ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--stream.tasks", "2"]
    assert main(arguments) == 0
    ours = load_file(run / "tasks/task-01/student.safetensors")
    frozen = [name for name in ours if name.startswith(("encoder.conv1", "encoder.bn1", "encoder.layer1"))]
    assert "encoder.bn1.running_mean" in frozen
    assert all(torch.equal(ours[name], theirs[name]) for name in frozen)
    assert not torch.equal(ours["encoder.layer4.0.conv1.weight"], theirs["encoder.layer4.0.conv1.weight"])
    untrained = json.loads((run / "results.json").read_text())["readers"]["knn"]["untrained"]
    assert min(untrained) > 0.6, "the row of the untrained network is that of the weights"
    assert json.loads((run / "environment.json").read_text())["weights"]["source"] == str(file)
    ended = snapshots(run)
    file.write_bytes(b"other")
    for folder in ("tasks/task-00", "tasks/task-01", "checkpoints"):
        shutil.rmtree(run / folder, ignore_errors=True)
    capfd.readouterr()
    assert main(arguments) == 0
    assert "has changed since the run began" in capfd.readouterr().out
    assert snapshots(run) == ended
    assert main([*arguments, "--encoder.weights", "null"]) == 2
    assert "encoder.weights was" in capfd.readouterr().err
    assert not [path for path in run.iterdir() if path.name.startswith(".pre") or path.name == FILE + ".tmp"]


def test_a_file_that_does_not_fit_leaves_no_run(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_file(built(width=8).state_dict(), tmp_path / "wide.safetensors")
    assert main([*tiny, "--encoder.weights", str(tmp_path / "wide.safetensors")]) == 2
    assert "does not fit the encoder" in capfd.readouterr().err
    assert not run_of(tiny).exists()


def test_keys_of_this_version_leave_the_hashes_of_earlier_runs_as_they_were() -> None:
    base, same = (resolve(*parse_arguments(["digits", *more]))[1] for more in ([], ["--encoder.freeze", "0"]))
    assert base.hash() == same.hash()
    assert "encoder.weights" in base.fixed()
    others = [{"encoder.weights": "a.safetensors"}, {"encoder.weights": "b.safetensors"}, {"encoder.freeze": "1"}]
    assert len({base.hash(), *(resolve("digits", one)[1].hash() for one in others)}) == 4
