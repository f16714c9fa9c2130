"""Lists on the command line, in recipes and in sweeps; keys of a recipe that a different method or encoder keeps."""

from pathlib import Path
from typing import Any

import pytest
from runs import sweep_file

from kaizen.cli.resolve import left_out, parse_arguments, resolve
from kaizen.cli.sweep import read_sweep
from kaizen.config.schema import Config


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(tokens))[1]


@pytest.mark.parametrize(
    ("key", "texts", "held"),
    [
        ("eval.readers", ("knn", "[knn]"), ("knn",)),
        ("eval.readers", ("classifier,knn", "[classifier, knn]", "classifier, knn"), ("classifier", "knn")),
        ("classifier.hidden", ("32", "[32]"), (32,)),
        ("classifier.hidden", ("64,32", "[64,32]"), (64, 32)),
        ("classifier.hidden", ("[]",), ()),
        ("data.normalize", ("dataset",), "dataset"),
        ("data.normalize", ("[[0,0,0],[1,1,1]]",), ((0, 0, 0), (1, 1, 1))),
    ],
)
def test_a_list_is_written_with_or_without_brackets(key: str, texts: tuple[str, ...], held: Any) -> None:
    section, name = key.split(".")
    for text in texts:
        assert getattr(getattr(config_of(f"--{key}", text), section), name) == held


def test_lists_of_views_methods_and_domains() -> None:
    config = config_of("--views.crop_scale", "0.5,1", "--views.1.jitter", "0,0,0,0")
    assert [view.crop_scale for view in config.views] == [(0.5, 1), (0.5, 1)]
    assert config.views[1].jitter == (0, 0, 0, 0)
    dino = config_of("--method.name", "dino", "--method.teacher_temperature", "0.05,0.06")
    assert dino.method.teacher_temperature == (0.05, 0.06)
    domains = ["--data.source", "disk:there", "--data.domain_column", "d", "--stream.kind", "domain"]
    assert config_of(*domains, "--stream.domains", "2019,sketch").stream.domains == ("2019", "sketch")


def test_lists_of_recipes_and_sweeps(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("eval: {readers: knn}\nclassifier: {hidden: 16}")
    config = config_of(str(tmp_path / "mine.yaml"))
    assert (config.eval.readers, config.classifier.hidden) == (("knn",), (16,))
    runs = read_sweep(sweep_file(tmp_path, "digits --eval.readers classifier,knn --classifier.hidden {32,[]}"))
    assert [run.config.classifier.hidden for run in runs] == [(32,), ()]
    assert {run.config.eval.readers for run in runs} == {("classifier", "knn")}


def test_keys_that_another_method_or_encoder_leaves_out_are_said() -> None:
    other = parse_arguments(["digits", "--method.name", "vicreg"])
    expected = "method keys of the recipe, which do not apply to vicreg: temperature 0.2, projector_hidden 256"
    assert [line.split(maxsplit=2)[2] for line in left_out(*other)] == [f"{expected}, projector_out 64"]
    assert not left_out(*parse_arguments(["digits", "--method.name", "simclr", "--optim.lr", "1"]))
    [line] = left_out(*parse_arguments(["digits", "--encoder.name", "vit_tiny"]))
    assert line.endswith("encoder keys of the recipe, which do not apply to vit_tiny: stem cifar, width 16")
    [line] = left_out(*parse_arguments(["cifar100-simclr", "--encoder.stem", "imagenet"]))
    assert line.endswith("encoder keys of the recipe, which do not apply to stem imagenet: stem_padding 2")
