"""Recipes for larger data hold what their papers, and the recipes they follow, say."""

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.config.schema import Config, flatten


def config_of(*tokens: str) -> Config:
    return resolve(*parse_arguments(tokens))[1]


def test_the_large_recipes_hold_the_published_values() -> None:
    for data, epochs in (("imagenet100", 400), ("domainnet", 200)):
        rates = {"simclr": 0.4, "mocov2plus": 0.4, "byol": 0.6, "vicreg": 0.4, "barlow": 0.4, "swav": 0.8}
        for method, rate in rates.items():
            config = config_of(f"{data}-{method}")
            optim, views = config.optim, config.views
            assert (optim.lr, optim.classifier_lr, optim.epochs) == (rate, 0.3, epochs)
            assert optim.batch == (1024 if (data, method) == ("domainnet", "byol") else 256)
            assert optim.name == ("sgd" if method == "mocov2plus" else "lars")
            strong = method in ("byol", "barlow")
            assert [view.blur_p for view in views] == ([1.0, 0.1] if strong else [0.5, 0.5])
            solarize = [0, 0.2] if strong else [0.1, 0.1] if method == "vicreg" else [0, 0]
            assert [view.solarize_p for view in views] == solarize
            assert config.encoder.stem == "imagenet"
        simclr = config_of(f"{data}-simclr")
        assert (simclr.method.temperature, simclr.method.projector_hidden) == (0.2, 2048)
        assert simclr.views[0].jitter == config_of(f"{data}-swav").views[0].jitter == (0.8, 0.8, 0.8, 0.2)
        assert config_of(f"{data}-byol").method.predictor_hidden == 8192
        swav = config_of(f"{data}-swav").method
        assert (swav.queue_epoch, swav.freeze_epochs) == (100, 5)
    assert len(config_of("domainnet-swav").stream.domains) == 6
    assert config_of("cifar100-10tasks-barlow").stream.tasks == 10
    assert config_of("cifar100-barlow").method.scale == 0.1
    assert [view.solarize_p for view in config_of("cifar100-swav").views] == [0, 0]


def test_recipes_for_larger_data_differ_from_their_models_where_they_say() -> None:
    for recipe, model, splits, stream, changed in (
        ("imagenet1k-byol", "imagenet100-byol", ("train", "validation"), ("class", 10), {"optim.epochs"}),
        ("tinyimagenet-simclr", "cifar100-simclr", ("train", "valid"), ("class", 10), {"encoder.stem_padding"}),
        ("stl10-barlow", "imagenet100-barlow", ("train+unlabeled", "test"), ("data", 5), {"replay.per_class"}),
        ("imagenet100-swav-multicrop", "imagenet100-swav", ("train", "validation"), ("class", 5), {"views"}),
    ):
        config = config_of(recipe)
        assert (config.data.train_split, config.data.test_split) == splits
        assert (config.stream.kind, config.stream.tasks) == stream
        ours, theirs = flatten(config.model_dump()), flatten(config_of(model).model_dump())
        found = {key for key in ours if ours[key] != theirs[key]} - {"replay.fraction"}
        assert {key for key in found if not key.startswith(("data.", "stream."))} == changed, recipe
    assert [view.size for view in config_of("imagenet100-swav-multicrop").views] == [None] * 2 + [96] * 6


def test_dino_with_small_crops_has_the_papers_crops_and_the_optimizer_of_byol_and_the_distiller_of_swav() -> None:
    dino, byol, swav = (config_of(f"imagenet100-{name}") for name in ("dino-multicrop", "byol", "swav"))
    sections = ("data", "stream", "encoder", "classifier", "replay", "optim", "run", "eval")
    assert all(getattr(dino, section) == getattr(byol, section) for section in sections)
    assert dino.distill == swav.distill
    assert [(view.size, view.crop_scale) for view in dino.views] == [(None, (0.4, 1))] * 2 + [(96, (0.05, 0.4))] * 6
    assert [view.blur_p for view in dino.views] == [1, 0.1] + [0.5] * 6
