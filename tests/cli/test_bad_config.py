"""Every invalid configuration ends with code 2 and one line that names the key."""

import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config.schema import Config
from kaizen.errors import ConfigError


def _keys_of(kind: Any) -> list[str]:
    """Keys of a section, or of the first section class in its type (views, method)."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return next((_keys_of(part) for part in typing.get_args(kind) if isinstance(part, type)), ["name", "temperature"])


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
    "empty list of readers": (["--eval.readers", "[]"], "eval.readers"),
    "list for a number": (["--optim.lr", "1,2"], "optim.lr"),
    "two recipes": (["digits", "cifar100-simclr"], "RECIPE"),
    "view that is not there": (["--views.2.flip_p", "0"], "views.2.flip_p"),
    "list that is too short": (["--views.crop_scale", "[0.5]"], "views.0.crop_scale"),
    "list for a name": (["--method.name", "[simclr]"], "method.name"),
    "tag": (["--optim.lr", "!!float x"], "optim.lr"),
    "nothing": (["--optim.lr", ""], "optim.lr"),
    "no run directory": (["--run.dir", ""], "run.dir"),
    "one dash": (["-optim.lr", "1"], "-optim.lr"),
    "number of a missing view": (["--views.\u00b2.flip_p", "0"], "views.\u00b2.flip_p"),
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
    "column stream without a column": (["--stream.kind", "column"], "data.task_column"),
    "column that is not there": (["--stream.kind", "column", "--data.task_column", "year"], "data.task_column"),
    "class named twice": (["--stream.classes", "[[1,2],[2]]"], "stream.classes"),
    "class that is not there": (["--stream.classes", "[[1,cat]]"], "stream.classes"),
    "classes without tasks": (["--stream.classes", "1,2"], "stream.classes.0"),
    "task without classes": (["--stream.classes", "[[1],[]]"], "stream.classes.1"),
    "classes of another stream": (["--stream.kind", "data", "--stream.classes", "[[1]]"], "stream.classes"),
    "classes and sizes": (["--stream.classes", "[[1]]", "--stream.sizes", "1"], "stream.sizes"),
    "sizes of another stream": (["--stream.kind", "joint", "--stream.sizes", "1"], "stream.sizes"),
    "more classes than there are": (["--stream.sizes", "5,6"], "stream.sizes"),
    "more images than there are": (["--stream.kind", "data", "--stream.sizes", "1400,39"], "stream.sizes"),
    "images and epochs": (["--optim.images", "900", "--optim.epochs", "3"], "optim.images"),
    "fewer images than a step": (["--optim.images", "63"], "optim.images"),
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
    "more prototypes than images": (
        ["--method.name", "deepclusterv2", "--method.prototypes", "283"],
        "method.prototypes",
    ),
    "distiller without prototypes": (["--distill.name", "knowledge"], "distill.name"),
    "supervised without labels": (["--method.name", "supervised", "--labels.fraction", "0"], "labels.fraction"),
    "mixing without a memory": (["--replay.mix", "lump", "--replay.policy", "none"], "replay.mix"),
    "mixing for a method of labels": (["--preset", "lump", "--method.name", "supervised"], "replay.mix"),
    "Osiris-D without a memory": (
        ["--preset", "osiris", "--method.stability", "distill", "--replay.policy", "none"],
        "method.stability",
    ),
    "alignment without statistics": (["--preset", "aligned", "--statistics.keep", "false"], "classifier.align"),
    "alignment without labels": (["--preset", "aligned", "--labels.fraction", "0"], "classifier.align"),
    "mixing of no kind": (["--replay.mix", "cutmix"], "replay.mix"),
    "shares of no distribution": (["--replay.mix_alpha", "0"], "replay.mix_alpha"),
    "logits without a memory": (["--preset", "derpp", "--replay.policy", "none"], "classifier.distill"),
    "logits of mixed images": (["--preset", "derpp", "--replay.mix", "lump"], "classifier.distill"),
    "logits of an untaught classifier": (
        ["--preset", "derpp", "--labels.fraction", "0"],
        "classifier.distill",
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


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["--epochs", "3"], "--epochs: is not a key; did you mean --optim.epochs?"),
        (["--seed", "3"], "--seed: is not a key; did you mean --run.seed or --stream.seed or --labels.seed?"),
        (["--queue_sise", "3"], "--queue_sise: is not a key; did you mean --method.queue_size?"),
        (["--optim.per_class", "3"], "optim.per_class: is not a key; did you mean --replay.per_class?"),
        (["--eval.readers", "tarot"], "eval.readers.0: is 'tarot'; allowed: classifier, statistics"),
        (["--eval.readers", "[]"], "eval.readers: is []; allowed: at least 1 value, as classifier,statistics"),
        (["--classifier.hidden", "x"], "classifier.hidden.0: is 'x'; allowed: a whole number, as 1000"),
        (["--classifier.hidden", "{a: 1}"], "classifier.hidden: is {'a': 1}; allowed: a list, as 1000"),
        (["--views.crop_scale", "0.5"], "views.0.crop_scale: is [0.5]; allowed: 2 values, as 0.08,1"),
        (["--optim.epochs", "many"], "optim.epochs: is 'many'; allowed: a whole number, as 500"),
        (["--optim.lr", "1,2"], "optim.lr: is '1,2'; allowed: a number or 'auto', as 0.5"),
    ],
)
def test_messages_name_the_whole_key_and_an_example(tokens: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(*parse_arguments(tokens))
    assert str(caught.value).startswith(said)
