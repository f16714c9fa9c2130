"""Configuration: what holds is resolved, what does not ends with code 2 and one line that names the key."""

import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kaizen.cli import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config import Config
from kaizen.errors import ConfigError
from kaizen.shipped import shipped_recipes
from kaizen.yamlio import YamlError, dump_yaml, parse_yaml


def _keys_of(kind: Any) -> list[str]:
    """Keys of a section, or of the first class among the arguments of its type (views, method)."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return next((_keys_of(part) for part in typing.get_args(kind) if isinstance(part, type)), ["name", "temperature"])


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(tokens))[1]


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_resolves_and_dumps(recipe: str) -> None:
    config = config_of(recipe)
    dumped = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert type(config).model_validate_json(yaml_to_json(dumped)) == config


def yaml_to_json(tree: object) -> str:
    import json

    return json.dumps(tree)


def test_cifar_recipes_hold_the_published_values() -> None:
    simclr, moco = config_of("cifar100-simclr"), config_of("cifar100-mocov2plus")
    for config in (simclr, moco):
        optim = config.optim
        assert (optim.name, optim.lr, optim.classifier_lr, optim.weight_decay) == ("lars", 1.0, 0.1, 1e-5)
        assert (optim.epochs, optim.batch, optim.warmup_epochs, optim.momentum, optim.eta) == (500, 256, 10, 0.9, 0.02)
        assert [view.solarize_p for view in config.views] == [0.0, 0.2]
        assert [view.crop_scale for view in config.views] == [(0.08, 1.0)] * 2
        assert [view.jitter for view in config.views] == [(0.4, 0.4, 0.2, 0.1)] * 2
        assert (config.classifier.hidden, config.classifier.weight, config.classifier.distill_weight) == (
            (1000,),
            1.0,
            2.0,
        )
        assert (config.distill.name, config.distill.weight, config.distill.hidden) == ("contrastive", 1.0, 2048)
        assert (config.replay.policy, config.replay_budget(), config.replay.batch) == ("random", ("fraction", 0.01), 32)
        assert (config.encoder.name, config.encoder.width, config.teacher.batchnorm) == ("resnet18", 64, "batch")
    assert (simclr.method.projector_hidden, simclr.method.projector_out, simclr.method.temperature) == (4096, 256, 0.1)
    assert (moco.method.projector_hidden, moco.method.projector_out, moco.method.temperature) == (2048, 256, 0.2)
    assert (moco.method.queue_size, moco.method.tau_base, moco.method.tau_final) == (65536, 0.99, 0.999)


def test_yaml_numbers_and_words() -> None:
    assert parse_yaml("[1e-5, 1E3, -2, 0.5, .5, 1., off, no, null, true, 2026-01-01, '1']") == [
        *(1e-5, 1e3, -2, 0.5, 0.5, 1.0),
        *("off", "no", None, True, "2026-01-01", "1"),
    ]


def test_yaml_that_could_be_read_two_ways_is_read_one_way_or_refused() -> None:
    assert parse_yaml("[010, 08, +7]") == [10, 8, 7]
    for text, said in (
        ("{a: 1, a: 2}", "'a' stands there twice"),
        ("!!float x", "tags such as"),
        ("&a {b: *a}", "recursive"),
        ("[1", "expected"),
    ):
        with pytest.raises(YamlError, match=said):
            parse_yaml(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_dumped_is_read_back_the_same(tree: Any) -> None:
    assert parse_yaml(dump_yaml(tree)) == tree


words = st.sampled_from(
    ["", "null", "-1", "1e400", "nan", ".inf", "[]", "[0.5]", "{}", "{a: 1}", "[[1]]", "!!int x", "010", "*a", "\u00b2"]
) | st.text(max_size=4)
keys = st.sampled_from(
    [f"{section}.{key}" for section, field in Config.model_fields.items() for key in _keys_of(field.annotation)]
)


@given(st.dictionaries(keys, words, min_size=1, max_size=2))
@settings(deadline=None, max_examples=300)
def test_any_override_resolves_or_is_a_configuration_error(overrides: dict[str, str]) -> None:
    with suppress(ConfigError):
        resolve("digits", overrides)


@pytest.mark.parametrize(
    "recipe",
    [
        "[1]",
        "method: [simclr]",
        "method: {name: [simclr]}",
        "method: {name: {a: 1}}",
        "replay: [1]",
        "stream: [joint]",
        "run: {1: 5}",
        "views: {flip_p: 0}",
        "views: [1, 2]",
        "views: [null, null]",
        "views: [{}]",
        "optim: &a {lr: *a}",
        "optim: {lr: 1, lr: 2}",
        "optim: null",
        "optim: {lr: !!python/name:os.system x}",
    ],
)
@pytest.mark.parametrize("override", [{}, {"views.flip_p": "0"}, {"replay.total": "50"}, {"method.temperature": "1"}])
def test_recipes_of_an_odd_shape_end_as_configuration_errors(
    recipe: str, override: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "odd.yaml").write_text(recipe)
    with pytest.raises(ConfigError) as caught:
        resolve(str(tmp_path / "odd.yaml"), override)
    assert "\n" not in str(caught.value)


def test_a_recipe_needs_no_more_than_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {lr: 0.5}")
    name, config = resolve(str(tmp_path / "mine.yaml"), {})
    assert (name, config.optim.lr, config.method.name) == ("mine", 0.5, "simclr")


def test_no_distiller_has_no_weight() -> None:
    assert config_of("--distill.name", "none", "--distill.weight", "3").distill.weight == 0


def test_a_budget_on_the_command_line_replaces_the_recipes() -> None:
    assert config_of("digits", "--replay.total", "50").replay_budget() == ("total", 50)
    assert config_of("digits").replay_budget()[0] == "per_class"


def test_another_method_leaves_the_recipes_method_keys_behind() -> None:
    config = config_of("digits", "--method.name", "mocov2plus", "--method.queue_size", "512")
    assert config.method.name == "mocov2plus"
    assert config.method.projector_hidden == type(config.method).model_fields["projector_hidden"].default


def test_view_keys_reach_all_views_or_one() -> None:
    config = config_of("digits", "--views.flip_p", "0.5", "--views.1.solarize_p", "0.2")
    assert [view.flip_p for view in config.views] == [0.5, 0.5]
    assert [view.solarize_p for view in config.views] == [0.0, 0.2]


def test_text_keys_keep_their_text() -> None:
    config = config_of("--run.dir", "007", "--log.name", "1e3", "--run.seed=3")
    assert (config.run.dir, config.log.name, config.run.seed) == ("007", "1e3", 3)


def test_of_a_key_given_twice_the_last_counts() -> None:
    assert config_of("--optim.lr", "1", "--optim.lr", "2").optim.lr == 2


def test_joint_is_one_task() -> None:
    assert config_of("--stream.kind", "joint").stream.tasks == 1


def test_a_domain_stream_has_a_task_for_each_domain_named() -> None:
    column = ["--data.source", "disk:there", "--data.domain_column", "domain", "--stream.kind", "domain"]
    assert config_of(*column, "--stream.domains", "[real, sketch]", "--stream.tasks", "7").stream.tasks == 2
    assert config_of(*column, "--stream.tasks", "7").hash() == config_of(*column).hash()


def test_hash_follows_what_is_computed_and_nothing_else() -> None:
    base = config_of("digits")
    free = config_of("--run.dir", "x", "--log.every_steps", "3", "--run.keep_checkpoints", "9", "--data.cache_dir", "y")
    assert base.hash() == free.hash()
    assert base.hash() != config_of("--run.seed", "1").hash()


BAD = {
    "unknown section": (["--optimizer.lr", "1"], "optimizer.lr"),
    "unknown key": (["--optim.learning_rate", "1"], "optim.learning_rate"),
    "key of another method": (["--method.queue_size", "8"], "method.queue_size"),
    "wrong type": (["--optim.epochs", "many"], "optim.epochs"),
    "number that is no integer": (["--optim.batch", "2.5"], "optim.batch"),
    "truth value as number": (["--run.seed", "true"], "run.seed"),
    "below the range": (["--optim.lr", "0"], "optim.lr"),
    "above the range": (["--views.flip_p", "1.5"], "views.0.flip_p"),
    "not finite": (["--optim.weight_decay", ".inf"], "optim.weight_decay"),
    "unknown method": (["--method.name", "simclrr"], "method.name"),
    "unknown distiller": (["--distill.name", "contrast"], "distill.name"),
    "unknown source": (["--data.source", "digit"], "data.source"),
    "unknown recipe": (["digitz"], "RECIPE"),
    "recipe file that is not there": (["no/such.yaml"], "RECIPE"),
    "missing data path": (["--data.source", "parquet:/no/such/folder"], "data.source"),
    "more tasks than classes": (["--stream.tasks", "11"], "stream.tasks"),
    "two budgets": (["--replay.total", "5", "--replay.fraction", "0.1"], "replay"),
    "warm-up as long as the task": (["--optim.warmup_epochs", "30"], "optim.warmup_epochs"),
    "crop scale upside down": (["--views.crop_scale", "[1, 0.2]"], "views.0"),
    "pair that does not fit": (["--encoder.stem", "imagenet", "--encoder.stem_padding", "2"], "encoder.stem_padding"),
    "hue out of range": (["--views.jitter", "[0.4, 0.4, 0.2, 0.9]"], "views.0.jitter.3"),
    "minimum above the rate": (["--optim.min_lr", "5"], "optim.min_lr"),
    "unknown reader": (["--eval.readers", "[classifier, tarot]"], "eval.readers.1"),
    "key without a value": (["--optim.lr"], "optim.lr"),
    "option without a section": (["--epochs", "3"], "--epochs"),
    "two recipes": (["digits", "cifar100-simclr"], "RECIPE"),
    "view that is not there": (["--views.2.flip_p", "0"], "views.2.flip_p"),
    "list that is too short": (["--views.crop_scale", "[0.5]"], "views.0.crop_scale"),
    "list for a name": (["--method.name", "[simclr]"], "method.name"),
    "tag": (["--optim.lr", "!!float x"], "optim.lr"),
    "nothing": (["--optim.lr", ""], "optim.lr"),
    "no run directory": (["--run.dir", ""], "run.dir"),
    "one dash": (["-optim.lr", "1"], "-optim.lr"),
    "number of a view that is none": (["--views.\u00b2.flip_p", "0"], "views.\u00b2.flip_p"),
    "too wide": (["--encoder.width", "99999999999"], "encoder.width"),
    "too large": (["--data.image_size", "100000"], "data.image_size"),
    "memory smaller than the classes": (["--replay.total", "9"], "replay.total"),
    "domain stream without a column": (["--stream.kind", "domain"], "data.domain_column"),
    "domains of another stream": (["--stream.domains", "[real]"], "stream.domains"),
    "no domain": (["--stream.kind", "domain", "--stream.domains", "[]"], "stream.domains"),
    "domain named twice": (
        ["--stream.kind", "domain", "--data.domain_column", "d", "--stream.domains", "[real, real]"],
        "stream.domains",
    ),
    "more tasks than test images": (["--stream.kind", "data", "--stream.tasks", "1000"], "stream.tasks"),
    "class ratio without new classes": (
        ["--stream.kind", "data", "--classifier.distill_weight", "class_ratio"],
        "classifier.distill_weight",
    ),
    "more labels than there are": (["--labels.fraction", "1.1"], "labels.fraction"),
    "fewer labels than none": (["--labels.fraction", "-0.1"], "labels.fraction"),
    "reservoir by class": (["--replay.policy", "reservoir", "--replay.per_class", "5"], "replay.total"),
    "reservoir without a size": (["cifar100-simclr", "--replay.policy", "reservoir"], "replay.total"),
    "memory smaller than the classes of all parts": (
        ["--stream.kind", "data", "--stream.tasks", "2", "--replay.total", "19"],
        "replay.total",
    ),
    "batch too small": (["--optim.batch", "1"], "optim.batch"),
    "run to be continued that is not there": (["--run.resume", "must"], "run.resume"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configuration_ends_with_code_2_and_one_line_naming_the_key(
    case: str, capfd: pytest.CaptureFixture[str], tmp_path: object, cache: str
) -> None:
    tokens, key = BAD[case]
    extra = ["--run.dir", f"{tmp_path}/run", "--data.cache_dir", cache]
    code = main([*extra, *tokens])
    lines = capfd.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"error: {key}: "), lines[0]
    assert len(lines[0]) < 400


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean warmup_epochs"):
        config_of("--optim.warmup_epoch", "3")


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for section, field in Config.model_fields.items():
        if section not in ("method", "views"):
            for key in field.annotation.model_fields:  # type: ignore[union-attr]
                assert f"--{section}.{key}" in text
    assert "--method.queue_size" in text
    assert "--views.solarize_p" in text
