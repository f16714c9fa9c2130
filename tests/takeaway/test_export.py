"""`python -m kaizen export`: a folder that works without the run, the trainer and, for encoders, this package."""

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held import held_of
from PIL import Image
from small_sources import picture

import kaizen
import kaizen.takeaway.export
from kaizen.commands import COMMANDS, run
from kaizen.config.encoder import EncoderConfig
from kaizen.errors import ConfigError
from kaizen.takeaway.export import export
from kaizen.takeaway.load import build


@pytest.fixture(scope="module")
def exported(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "below/model"
    assert run(["export", str(undisturbed), "--out", str(folder), "--no-onnx"], COMMANDS) == 0
    return folder


def blocks(folder: Path) -> dict[str, str]:
    """Python of the card, by the heading that it stands under."""
    found = re.findall(
        r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.M | re.S
    )
    return dict(found)


def execute(folder: Path, heading: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names after a block of the card was executed in the folder, which has an image.png."""
    names: dict[str, Any] = {}
    with patch.context() as inside:
        inside.chdir(folder)
        exec(compile(blocks(folder)[heading], "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("reader", ["classifier", "statistics"])
def test_the_folder_gives_what_the_run_gives(reader: str, exported: Path, undisturbed: Path) -> None:
    images = [picture(number, (12, 9)) for number in range(5)]
    ours, theirs = kaizen.load_model(undisturbed, reader=reader), kaizen.load_model(exported, reader=reader)
    assert torch.equal(ours.features(images), theirs.features(images))
    assert ours.predict(images) == theirs.predict(images)
    assert kaizen.load_model(exported, 4).class_names == ours.class_names


def test_the_folder_has_all_files_and_they_are_readable_by_others(exported: Path) -> None:
    names = ["README.md", "config.json", "encoder.safetensors", "model.safetensors"]
    assert sorted(file.name for file in exported.iterdir()) == names
    umask = os.umask(0)
    os.umask(umask)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask for file in exported.iterdir())
    assert not [file for file in exported.parent.iterdir() if file != exported]
    from safetensors import safe_open

    with safe_open(exported / "model.safetensors", "numpy") as held:
        assert {name.split(".")[0] for name in held.keys()} == {"encoder", "classifier", "statistics"}  # noqa: SIM118


def test_the_card_tells_data_protocol_accuracies_and_licence(exported: Path, undisturbed: Path) -> None:
    text = (exported / "README.md").read_text()
    results = json.loads((undisturbed / "results.json").read_text())
    reader = results["readers"]["classifier"]
    assert f"| classifier | {' | '.join(f'{100 * cell:.1f}' for cell in reader['matrix'][-1])} |" in text
    assert "final accuracy: mean over tasks after the last task" in text
    assert results["data"]["digest"] in text
    assert "Source `digits`" in text
    assert "replay memory: random, per class 4" in text
    assert "| 0 | 1, 4 | 291 | 72 |" in text
    assert 'license: "unknown"' in text
    assert "torchvision has no resnet18 of width 4" in text


def test_the_card_of_an_earlier_task_tells_of_that_task(undisturbed: Path, tmp_path: Path) -> None:
    given = ["--out", str(tmp_path / "out"), "--task", "1", "--no-onnx", "--license", "cc-by-4.0"]
    assert run(["export", str(undisturbed), *given], COMMANDS) == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "The classifier was taught 4 of them" in text
    assert "final accuracy" not in text, "that is for the last task"
    assert "| 1 | 9, 6 |" in text
    assert "| 2 | 3, 5 |" not in text
    assert 'license: "cc-by-4.0"' in text
    with pytest.raises(ConfigError, match="task: is 0; allowed: 1, the only task of"):
        kaizen.load_model(tmp_path / "out", 0)


def test_the_first_block_of_the_card_runs(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    picture(0).save(folder / "image.png")
    names = execute(folder, "With kaizen", monkeypatch)
    assert names["features"].shape == (1, names["model"].description.features)


RESNETS = {
    "imagenet": EncoderConfig(name="resnet18", stem="imagenet"),
    "cifar": EncoderConfig(name="resnet34", stem="cifar", stem_padding=2),
    "group": EncoderConfig(name="resnet18", stem="cifar", norm="group"),
    "bottleneck": EncoderConfig(name="resnet50", stem="imagenet"),
}


@pytest.mark.parametrize("case", RESNETS)
def test_torchvision_loads_the_encoder(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, folder = held_of(RESNETS[case], 32), tmp_path / "out"
    export(held, folder, onnx=False)
    assert ("`conv1` is 3 x 3 instead of" in (folder / "README.md").read_text()) == (RESNETS[case].stem == "cifar")
    theirs = execute(folder, "With torchvision", monkeypatch)["encoder"]
    assert "kaizen" not in blocks(folder)["With torchvision"]
    ours, images = build(held, "classifier"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(images), ours.encoder(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "patch"), [("vit_tiny", 8), ("timm:test_vit", None), ("timm:test_resnet", None)])
def test_timm_loads_the_encoder(name: str, patch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, folder = held_of(EncoderConfig(name=name, stem="cifar", patch=patch), 32), tmp_path / "out"
    export(held, folder, onnx=False)
    theirs = execute(folder, "With timm", monkeypatch)["encoder"]
    ours, images = build(held, "classifier"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(images), ours.encoder(images), rtol=1e-4, atol=1e-4)


def test_names_from_the_data_do_not_change_the_layout_of_the_card(tmp_path: Path) -> None:
    held = held_of(EncoderConfig(name="resnet18", stem="cifar", width=4), 8, class_names=("a|b", "<b>\n# c", "`d`"))
    export(held, tmp_path / "out", onnx=False)
    assert "3 classes: a\\|b, \\<b\\> # c, \\`d\\`." in (tmp_path / "out/README.md").read_text()
    assert kaizen.load_model(tmp_path / "out").class_names == ["a|b", "<b>\n# c", "`d`"]


def test_a_place_that_is_taken_is_refused_and_an_empty_one_is_used(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for place in ("taken", "taken/mine.txt"):
        assert run(["export", str(undisturbed), "--out", str(tmp_path / place), "--no-onnx"], COMMANDS) == 2
    assert (tmp_path / "taken/mine.txt").read_text() == "mine"
    assert run(["export", str(undisturbed), "--out", str(tmp_path / "empty"), "--no-onnx"], COMMANDS) == 0
    assert (tmp_path / "empty/model.safetensors").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_in_the_middle_leaves_nothing(
    error: BaseException, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(kaizen.takeaway.export, "card", fail)
    before = sorted(file for file in undisturbed.rglob("*"))
    code = run(["export", str(undisturbed), "--out", str(tmp_path / "out/model"), "--no-onnx"], COMMANDS)
    assert code == (2 if isinstance(error, OSError) else 130)
    assert not list((tmp_path / "out").iterdir())
    assert sorted(file for file in undisturbed.rglob("*")) == before


def test_paths_of_this_machine_are_not_told(undisturbed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(undisturbed, tmp_path / "run")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("source: digits", "source: 'imagefolder:/home/jane/pets'"))
    assert run(["export", str(copy), "--out", str(tmp_path / "out"), "--no-onnx"], COMMANDS) == 0
    told = "".join((tmp_path / "out" / name).read_text() for name in ("README.md", "config.json"))
    assert "imagefolder:pets" in told
    assert "jane" not in told
    assert str(tmp_path) not in told


DAMAGE = {
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
    "other tensors": (
        lambda folder: shutil.copy(folder / "encoder.safetensors", folder / "model.safetensors"),
        "model.safetensors: contains no classifier",
    ),
    "no json": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json: cannot be used: it: Invalid JSON",
    ),
    "a later version": (
        lambda folder: change(folder, format=2),
        "config.json: cannot be used: format: Input should be 1 (was it written by another version?)",
    ),
    "names": (lambda folder: change(folder, class_names=["a"]), "model.safetensors: has 10 outputs, but 1 classes are"),
    "labels": (lambda folder: change(folder, taught={"classifier": [10]}), "model.safetensors: has 10 outputs, but"),
    "width": (
        lambda folder: change(folder, encoder={"name": "resnet18", "stem": "cifar", "width": 8}),
        "model.safetensors: encoder.",
    ),
}


def change(folder: Path, **keys: Any) -> None:
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, **keys}))


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_with_the_name_of_the_file(case: str, exported: Path, tmp_path: Path) -> None:
    damage, said = DAMAGE[case]
    folder = shutil.copytree(exported, tmp_path / "copy")
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        kaizen.load_model(folder)
    assert str(caught.value).startswith(f"{folder}/{said}")
    assert "\n" not in str(caught.value)


MISTAKES = {
    "nothing": ([], "arguments: the following arguments are required: RUN, --out"),
    "no out": (["RUN"], "arguments: the following arguments are required: --out"),
    "no run": (["/no/such", "--out", "OUT"], "RUN: is '/no/such', which contains no run (no config.yaml)"),
    "no task": (["RUN", "--out", "OUT", "--task", "9"], "task: is 9; allowed: 0 to 4"),
    "no number": (["RUN", "--out", "OUT", "--task", "-1"], "arguments: argument --task: is '-1'; allowed: a number"),
    "licence": (["RUN", "--out", "OUT", "--license", "my own"], "arguments: argument --license: is 'my own'; allowed"),
    "public": (["RUN", "--out", "OUT", "--public"], "--public: is given without --push"),
    "no repository": (["RUN", "--out", "OUT", "--push", "model"], "--push: is 'model'; allowed: OWNER/NAME"),
    "not logged in": (["RUN", "--out", "OUT", "--push", "me/model"], "--push: is 'me/model', but nobody is logged in"),
    "here": (["RUN", "--out", "."], "--out: is '.', the current directory"),
    "taken": (["RUN", "--out", "RUN"], "--out: is '"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_with_code_2_and_one_line(
    case: str,
    undisturbed: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    tokens, said = MISTAKES[case]
    places = {"RUN": str(undisturbed), "OUT": str(tmp_path / "out")}
    assert run(["export", *(places.get(token, token) for token in tokens)], COMMANDS) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_its_packages_the_graph_is_left_out_or_refused(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kaizen.takeaway.graph.PACKAGES", ("no_such_package",))
    assert run(["export", str(undisturbed), "--out", str(tmp_path / "out"), "--onnx"], COMMANDS) == 2
    assert "pip install 'kaizen-accelerate[onnx]'" in capfd.readouterr().err
    assert run(["export", str(undisturbed), "--out", str(tmp_path / "out")], COMMANDS) == 0
    assert "note: no model.onnx" in capfd.readouterr().out
    assert "onnx" not in (tmp_path / "out/README.md").read_text().lower()


def test_a_model_of_the_folder_needs_no_square_images(exported: Path) -> None:
    model = kaizen.load_model(exported)
    assert model.prepare(Image.new("L", (30, 9))).shape == (1, 3, 8, 8)
    assert np.array_equal(model.prepare([]), np.empty((0, 3, 8, 8)))
