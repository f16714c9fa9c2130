"""Configuration: valid ones are resolved, invalid ones end with code 2 and one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.cli.shipped import shipped_recipes
from kaizen.commands.train import main
from kaizen.config.extension import Extension
from kaizen.config.schema import LATER_IN_EXTENSIONS, LATER_KEYS, Config, fixed_keys, flatten, hash_keys
from kaizen.config.yaml import YamlError, dump_yaml, parse_yaml
from kaizen.errors import ConfigError


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
        ("{a: 1, a: 2}", "'a' occurs twice"),
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


def test_a_recipe_needs_no_more_than_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {lr: 0.5}")
    name, config = resolve(str(tmp_path / "mine.yaml"), {})
    assert (name, config.optim.lr, config.method.name) == ("mine", 0.5, "simclr")


@pytest.mark.parametrize("method", ["swav", "dino", "lejepa"])
def test_small_crops_belong_to_some_methods_and_have_a_size(method: str, tmp_path: Path) -> None:
    for text, key in (
        ("views: [{}, {}, {size: 4}]", "views"),
        (f"method: {{name: {method}}}\nviews: [{{}}, {{}}, {{}}]", "views.2.size"),
        (f"method: {{name: {method}}}\nviews: [{{size: 8}}, {{}}]", "views.0.size"),
    ):
        (tmp_path / "crops.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            resolve(str(tmp_path / "crops.yaml"), {})
        assert caught.value.key == key
    (tmp_path / "crops.yaml").write_text(f"method: {{name: {method}}}\nviews: [{{}}, {{}}, {{size: 24}}, {{size: 24}}]")
    assert [view.size for view in resolve(str(tmp_path / "crops.yaml"), {})[1].views] == [None, None, 24, 24]


def test_the_published_recipes_of_the_papers_four_methods() -> None:
    expected = {
        "simclr": (1.0, 0.1, 1e-5, 4096, 256, [0, 0.2], 0.08, "contrastive", 1),
        "mocov2plus": (1.0, 0.1, 1e-5, 2048, 256, [0, 0.2], 0.08, "contrastive", 1),
        "byol": (1.0, 0.1, 1e-5, 4096, 256, [0, 0.2], 0.08, "predictive", 1),
        "vicreg": (0.3, 0.05, 1e-4, 2048, 2048, [0.1, 0.1], 0.2, "predictive_mse", 25),
    }
    for name, values in expected.items():
        config = config_of(f"cifar100-{name}")
        optim, method, views = config.optim, config.method, config.views
        assert values == (
            *(optim.lr, optim.classifier_lr, optim.weight_decay, method.projector_hidden, method.projector_out),
            *([view.solarize_p for view in views], views[0].crop_scale[0], config.distill.name, config.distill.weight),
        )
    byol = config_of("cifar100-byol").method
    assert (byol.predictor_hidden, byol.tau_base, byol.tau_final) == (4096, 0.99, 1.0)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["cifar100-vicreg", "--method.name", "byol", "--preset", "kaizen"], ("predictive", 1.0, None)),
        (["cifar100-simclr", "--method.name", "vicreg", "--preset", "cassle"], ("predictive_mse", 25.0, None)),
        (["cifar100-simclr", "--method.name", "swav", "--preset", "kaizen"], ("knowledge", 1.0, 0.1)),
        (["cifar100-vicreg", "--distill.name", "predictive"], ("predictive", 1.0, None)),
        (["cifar100-vicreg", "--distill.name", "predictive", "--distill.weight", "3"], ("predictive", 3.0, None)),
        (["cifar100-vicreg", "--preset", "kaizen"], ("predictive_mse", 25.0, None)),
        (["cifar100-simclr", "--distill.temperature", "0.5"], ("contrastive", 1.0, 0.5)),
    ],
)
def test_another_distiller_has_strengths_of_its_own(
    tokens: list[str], expected: tuple[str, float, float | None]
) -> None:
    distill = config_of(*tokens).distill
    assert (distill.name, distill.weight) == expected[:2]
    assert expected[2] is None or distill.temperature == expected[2]
    assert distill.hidden == 2048, "keys of all distillers keep the recipe's values"


def test_recipes_follow_their_released_scripts_in_stem_projections_and_one_dimensional_parameters() -> None:
    adapts = {"cifar100-swav", "cifar100-10tasks-swav"}
    adapts |= {f"{data}-mocov2plus" for data in ("imagenet100", "imagenet1k", "domainnet")}
    for recipe in shipped_recipes():
        config = config_of(recipe)
        assert config.optim.exclude_1d == (recipe not in adapts), recipe
        published = recipe.startswith("cifar100-") and recipe != "cifar100-online"
        assert config.encoder.stem_padding == (2 if published else 1), recipe
        large = recipe.startswith(("imagenet100-", "imagenet1k-", "domainnet-"))
        if large and config.method.name in ("simclr", "mocov2plus"):
            assert config.method.projector_out == 128, recipe
    assert config_of("cifar100-simclr", "--encoder.stem", "imagenet").encoder.stem_padding == 1


def test_no_distiller_has_no_weight() -> None:
    assert config_of("--distill.name", "none", "--distill.weight", "3").distill.weight == 0


def test_a_budget_on_the_command_line_replaces_the_recipes() -> None:
    assert config_of("digits", "--replay.total", "50").replay_budget() == ("total", 50)
    assert config_of("digits").replay_budget()[0] == "per_class"


def test_a_number_of_images_and_epochs_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {images: 900, warmup_epochs: 0}\nmethod: {name: simclr}")
    mine = str(tmp_path / "mine.yaml")
    assert config_of(mine).optim.images == 900
    assert config_of(mine, "--optim.epochs", "3").optim.images is None
    assert config_of("digits", "--optim.images", "900").optim.images == 900
    assert config_of(mine, "--optim.images", "null", "--optim.epochs", "3").optim.epochs == 3
    with pytest.raises(ConfigError, match=r"optim\.images: is given with optim\.epochs; allowed: one of the two"):
        config_of("digits", "--optim.images", "900", "--optim.epochs", "3")


def test_tasks_by_hand_and_by_size_replace_each_other_and_decide_the_number_of_tasks(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("stream: {classes: [[0, '1'], [7]], tasks: 9}\nmethod: {name: simclr}")
    mine = str(tmp_path / "mine.yaml")
    assert config_of(mine).stream.classes == (("0", "1"), ("7",))
    assert config_of(mine, "--stream.tasks", "4").stream.tasks == 2
    by_size = config_of(mine, "--stream.sizes", "5,3,1").stream
    assert (by_size.classes, by_size.sizes, by_size.tasks) == (None, (5, 3, 1), 3)
    assert config_of("--stream.kind", "data", "--stream.sizes", "[500]").stream.tasks == 1
    assert config_of(mine, "--preset", "joint").stream.tasks == 1
    assert config_of("--preset", "joint").stream.tasks == 1


def test_keys_that_are_null_leave_the_hash_as_it_was() -> None:
    flat = config_of("digits").fixed()
    assert set(LATER_KEYS) < set(flat)
    before = {key: value for key, value in flat.items() if key not in LATER_KEYS}
    assert hash_keys(before) == hash_keys(flat) == config_of("digits").hash()
    for keys in (["--optim.images", "900"], ["--stream.sizes", "2,2"], ["--stream.classes", "[[1,2]]"]):
        assert config_of("digits", *keys).hash() != config_of("digits").hash()


def test_a_held_out_part_and_nested_classes_are_hashed_only_if_they_are_set() -> None:
    base = config_of("digits")

    def extended(**keys: object) -> str:
        part = Extension(data=base.data.model_copy(update=keys), stream=base.stream)
        return base.model_copy(update={"extensions": (part,)}).hash(extensions=1)

    own = fixed_keys(flatten(Extension(data=base.data, stream=base.stream).model_dump(mode="json")))
    earlier = {key: value for key, value in own.items() if key not in LATER_IN_EXTENSIONS}
    assert extended() == hash_keys(base.fixed() | {f"extensions.0.{key}": value for key, value in earlier.items()})
    assert len({extended(), extended(test_fraction=0.2), extended(nested=True)}) == 3
    assert config_of("digits", "--data.test_fraction", "0.2").hash() != base.hash()


@pytest.mark.parametrize("split", ["train+", "+train", "train+train"])
def test_a_sum_of_splits_names_each_once(split: str) -> None:
    with pytest.raises(ConfigError, match="allowed: one split, or different ones with"):
        config_of("--data.train_split", split)


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
    moved = config_of("--data.source", "hub:own/set", "--data.config", "c1", "--data.revision", "v2")
    assert base.hash() == moved.hash(), "the location of the data is not part of the hash; the run has their digest"
    assert base.hash(places=True) != moved.hash(places=True)
    assert base.hash() != config_of("--run.seed", "1").hash()


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"did you mean optim\.warmup_epochs"):
        config_of("--optim.warmup_epoch", "3")


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for section, field in Config.model_fields.items():
        if section not in ("method", "views", "extensions"):
            for key in field.annotation.model_fields:  # type: ignore[union-attr]
                assert f"--{section}.{key}" in text
    assert "--method.queue_size" in text
    assert "--views.solarize_p" in text
