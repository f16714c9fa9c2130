"""Presets: baselines between recipe and command line; what each one trains and how its run is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY
from runs import run_of
from safetensors.torch import load_file

from kaizen.cli.resolve import left_out, parse_arguments, resolve
from kaizen.cli.shipped import shipped_presets, shipped_recipes
from kaizen.commands import COMMANDS, run
from kaizen.commands.train import main
from kaizen.config.schema import Config, flatten
from kaizen.errors import ConfigError
from kaizen.model.learner import Network
from kaizen.model.methods import method_class

PAST: dict[str, tuple[bool, float | None, bool]] = {
    "finetune": (False, 0, False),
    "replay": (False, 0, True),
    "cassle": (True, 0, False),
    "cassle-replay": (True, 0, True),
    "kaizen": (True, None, True),
    "joint": (False, None, False),
    "random-encoder": (False, 0, False),
    "lump": (False, 0, True),
    "derpp": (False, 0.5, True),
    "pfr": (True, 0, True),
    "pnr": (True, 0, True),
    "osiris": (False, 0, True),
    "supervised": (True, None, True),
    "aligned": (True, None, True),
    "aligned-pfr": (True, None, True),
}
"""Per preset: whether it has a distiller, its classifier.distill_weight (None: the recipe's), and a memory."""


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(tokens))[1]


def test_the_presets_are_those_of_the_issue() -> None:
    assert set(shipped_presets()) == set(PAST)


@pytest.mark.parametrize("recipe", shipped_recipes())
@pytest.mark.parametrize("preset", PAST)
def test_a_preset_keeps_of_the_past_what_its_name_says(preset: str, recipe: str) -> None:
    plain = config_of(recipe)
    if preset == "pnr" and method_class(plain.method.name).pseudo_negatives == "none":
        with pytest.raises(ConfigError, match=r"distill\.name: is 'pnr', which is defined for"):
            config_of(recipe, "--preset", preset)
        return
    if preset == "lump" and not method_class(plain.method.name).takes_mixed:
        with pytest.raises(ConfigError, match=r"replay\.mix: is 'lump', but \w+ has no loss for mixed images"):
            config_of(recipe, "--preset", preset)
        return
    if preset in ("osiris", "supervised") and len(plain.views) > method_class(preset).most_views:
        with pytest.raises(ConfigError, match=rf"views: are 8; allowed with {preset}: 2"):
            config_of(recipe, "--preset", preset)
        return
    config = config_of(recipe, "--preset", preset)
    distills, weight, remembers = PAST[preset]
    distiller = {"pfr": "pfr", "aligned-pfr": "pfr", "pnr": "pnr", "supervised": "pfr"}.get(preset, plain.distill.name)
    assert config.distill.name == (distiller if distills else "none")
    assert config.classifier.distill_weight == (plain.classifier.distill_weight if weight is None else weight)
    assert config.replay.policy == (plain.replay.policy if remembers else "none")
    assert plain.replay.policy == "random"
    before = flatten(plain.model_dump())
    changed = {key for key, value in flatten(config.model_dump()).items() if before.get(key) != value}
    if preset in ("osiris", "supervised"):
        own = plain.method if plain.method.name == preset else method_class(preset).Settings()
        assert config.method.model_dump() == own.model_dump()
        changed = {key for key in changed if not key.startswith("method.")}
    allowed = {"distill.name", "distill.weight", "distill.temperature", "classifier.distill_weight", "replay.policy"}
    allowed_too = {
        "joint": {"stream.kind", "stream.tasks", "stream.domains", "stream.sizes"},
        "random-encoder": {"method.weight", "optim.weight_decay"},
        "lump": {"replay.mix"},
        "derpp": {"method.weight", "classifier.distill", "classifier.stop_gradient"},
        "pfr": {"distill.hidden"},
        "aligned": {"classifier.align"},
        "aligned-pfr": {"classifier.align", "distill.hidden"},
        "supervised": {"distill.hidden"},
    }
    assert changed <= allowed | allowed_too.get(preset, set()), "everything else is the recipe's"


def test_the_joint_preset_is_one_task_and_the_random_encoder_learns_nothing_but_its_classifier() -> None:
    assert (config_of("--preset", "joint").stream.kind, config_of("--preset", "joint").stream.tasks) == ("joint", 1)
    frozen = config_of("--preset", "random-encoder", "--method.name", "mocov2plus")
    assert frozen.method.weight == 0, "another method leaves the recipe's keys behind, not the preset's"
    assert (frozen.optim.weight_decay, frozen.classifier.stop_gradient) == (0, True)


def test_lump_mixes_and_derpp_learns_from_labels_alone() -> None:
    lump, derpp = config_of("--preset", "lump"), config_of("--preset", "derpp")
    assert (lump.replay.mix, lump.replay.mix_alpha, lump.classifier.distill) == ("lump", 0.4, "soft_label")
    assert (lump.method.weight, lump.classifier.stop_gradient) == (1, True)
    assert (derpp.classifier.distill, derpp.classifier.stop_gradient) == ("stored_logits", False)
    assert (derpp.method.weight, derpp.replay.mix) == (0, "none")


def test_a_preset_with_another_method_leaves_the_recipes_keys_of_the_method_behind() -> None:
    tokens = parse_arguments(["digits", "--preset", "osiris"])
    [line] = left_out(*tokens)
    assert line.endswith("do not apply to osiris: temperature 0.2, projector_hidden 256, projector_out 64")
    method = resolve(*tokens)[1].method
    assert (method.name, method.temperature, method.projector_hidden) == ("osiris", 0.1, 2048)
    given = config_of("digits", "--preset", "osiris", "--method.stability", "distill", "--method.projector_out", "9")
    assert (given.method.stability, given.method.projector_out, given.distill.name) == ("distill", 9, "none")
    same = parse_arguments(["digits-osiris", "--preset", "osiris"])
    assert (left_out(*same), resolve(*same)[1].method.projector_hidden) == ([], 256), "its own method's keys apply"
    back = parse_arguments(["digits", "--preset", "osiris", "--method.name", "simclr"])
    assert (left_out(*back), resolve(*back)[1].method.temperature) == ([], 0.2)


def test_the_preset_stands_above_the_recipe_and_below_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("classifier: {distill_weight: 3, stop_gradient: false}\ndistill: {name: none}")
    mine = str(tmp_path / "mine.yaml")
    config = config_of(mine, "--preset=random-encoder")
    assert (config.classifier.distill_weight, config.classifier.stop_gradient) == (0, True)
    config = config_of("--classifier.distill_weight", "0.5", mine, "--preset", "kaizen", "--replay.policy", "first")
    assert (config.classifier.distill_weight, config.distill.name) == (0.5, "contrastive")
    assert config.replay.policy == "first"
    assert config_of("--preset", "joint", "--preset", "cassle").stream.kind == "class", "the last one counts"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (
            ["--preset", "casle"],
            "error: --preset: is 'casle'; allowed: aligned, aligned-pfr, cassle, cassle-replay",
        ),
        (["--preset"], "error: --preset: needs a value: --preset NAME"),
        (["--preset", "--optim.lr", "1"], "error: --preset: needs a value: --preset NAME"),
        (["--presets", "cassle"], "error: --presets: is not a key"),
        (["preset=cassle"], "error: RECIPE: is 'preset=cassle'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "show"])
def test_a_preset_that_is_none_ends_with_code_2_and_one_line(
    command: str, tokens: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (main(tokens) if command == "train" else run(["show", *tokens], COMMANDS)) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_a_run_is_named_after_its_preset_and_says_so(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [*TINY, "--data.cache_dir", cache, "--stream.tasks", "2", "--run.checkpoint_every", "0", "--run.seed", "3"]
    held: dict[str, Any] = {}
    for name, tokens in {"digits-seed3": [], "digits-kaizen-seed3": ["--preset", "kaizen"]}.items():
        assert main(["digits", *short, *tokens]) == 0
        held[name] = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    assert [found["preset"] for found in held.values()] == [None, "kaizen"]
    hashes = {found["config_hash"] for found in held.values()}
    assert len(hashes) == 1, "a name does not affect the result"
    lines = (tmp_path / "runs/digits-kaizen-seed3/config.yaml").read_text().splitlines()
    assert lines[:2] == ["# recipe: digits", "# preset: kaizen"]


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_the_random_encoder_ends_with_the_parameters_it_began_with_bit_for_bit(optimizer: str, tiny: list[str]) -> None:
    arguments = [*tiny, "--preset", "random-encoder", "--optim.name", optimizer, "--stream.tasks", "2"]
    arguments += ["--run.checkpoint_every", "0"]
    assert main(arguments) == 0
    fresh = Network(config_of(*arguments), 10)
    for task in (0, 1):
        student = load_file(run_of(tiny) / f"tasks/task-{task:02d}/student.safetensors")
        for name, parameter in fresh.encoder.named_parameters():
            held = student[f"encoder.{name}"]
            assert torch.equal(held.view(torch.int32), parameter.detach().view(torch.int32)), name
        assert not torch.equal(student["classifier.0.weight"], fresh.classifier.state_dict()["0.weight"])


def test_show_tells_the_preset_and_help_describes_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "digits", "--preset", "cassle"], COMMANDS) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["# recipe: digits", "# preset: cassle"]
    assert yaml.safe_load(out)["replay"]["policy"] == "none"
    for text in (main, lambda tokens: run(["show", *tokens], COMMANDS)):
        assert text(["--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "--preset NAME" in lines[0]
        assert {line.split()[0] for line in lines if line.startswith("  ") and line.split()} >= set(PAST)
