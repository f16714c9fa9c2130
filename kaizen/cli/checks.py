"""Checks of keys that do not fit together, before any work and without the data."""

from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.errors import ConfigError
from kaizen.model.methods import method_class
from kaizen.plugins import short


def check_pairs(config: Config) -> None:
    """Refuse keys that do not fit together; needs no data.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    optim = config.optim
    if optim.images is None and optim.warmup_epochs not in (0, AUTO) and optim.warmup_epochs >= optim.epochs:
        raise ConfigError(
            "optim.warmup_epochs", f"is {optim.warmup_epochs}; allowed: below optim.epochs ({optim.epochs})"
        )
    if AUTO not in (optim.lr, optim.batch) and optim.min_lr > optim.lr * optim.batch / 256:
        raise ConfigError("optim.min_lr", f"is {optim.min_lr}, above the scaled rate {optim.lr * optim.batch / 256:g}")
    if config.encoder.stem == "imagenet" and config.encoder.stem_padding != 1:
        raise ConfigError("encoder.stem_padding", "applies to encoder.stem cifar; with stem imagenet only 1 is allowed")
    for number, view in enumerate(config.views):
        if (number < 2) != (view.size is None):
            allowed = "null" if number < 2 else "a number, as a third view and those after it are small crops"
            raise ConfigError(f"views.{number}.size", f"is {view.size}; allowed: {allowed}")
    if len({short(reader) for reader in config.eval.readers}) != len(config.eval.readers):
        raise ConfigError("eval.readers", f"is {list(config.eval.readers)}; each reader may be named once")
    if not config.labels.fraction and method_class(config.method.name).needs_labels:
        problem = f"is 0, and method.name {config.method.name} learns from labels alone"
        raise ConfigError("labels.fraction", f"{problem}; allowed: above 0 to 1, or another method.name")
    _check_stream(config)
    if config.classifier.align == "statistics" and not config.statistics.keep:
        raise ConfigError("classifier.align", "is 'statistics', but statistics.keep is false; allowed: none")
    if config.classifier.align == "statistics" and config.labels.fraction == 0:
        raise ConfigError("classifier.align", "is 'statistics', but labels.fraction is 0; allowed: none")
    if config.classifier.align == "statistics" and config.classifier.distill == "stored_logits":
        problem = "is 'statistics'; allowed with classifier.distill stored_logits, which are stored before: none"
        raise ConfigError("classifier.align", problem)
    _check_memory(config)
    kind, _ = config.replay_budget()
    if config.replay.policy == "reservoir" and kind not in ("total", "bytes"):
        given = "no budget is given" if kind == AUTO else f"replay.{kind} is given"
        problem = f"is needed by replay.policy reservoir, which knows no classes, or replay.bytes; {given}"
        raise ConfigError("replay.total", problem)


def _check_stream(config: Config) -> None:
    stream = config.stream
    if stream.kind == "domain" and config.data.domain_column is None:
        raise ConfigError("data.domain_column", "is null; stream.kind domain needs the name of the domains' column")
    if stream.domains is not None:
        if stream.kind != "domain":
            raise ConfigError("stream.domains", f"applies to stream.kind domain; here stream.kind is {stream.kind}")
        if len(set(stream.domains)) != len(stream.domains):
            raise ConfigError("stream.domains", f"is {list(stream.domains)}; each domain may be named once")
    if stream.kind == "column" and config.data.task_column is None:
        raise ConfigError("data.task_column", "is null; stream.kind column needs the name of the tasks' column")
    if stream.classes is not None and stream.sizes is not None:
        raise ConfigError("stream.sizes", "is given with stream.classes; allowed: one of the two")
    if stream.sizes is not None and stream.kind not in ("class", "data"):
        raise ConfigError("stream.sizes", f"applies to stream.kind class and data; here stream.kind is {stream.kind}")
    if stream.classes is not None:
        if stream.kind not in ("class", "joint"):
            problem = f"applies to stream.kind class and joint; here stream.kind is {stream.kind}"
            raise ConfigError("stream.classes", problem)
        named = [name for task in stream.classes for name in task]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ConfigError("stream.classes", f"names {', '.join(twice)} more than once; allowed: each class once")
    if stream.kind == "data" and config.classifier.distill_weight == "class_ratio":
        raise ConfigError(
            "classifier.distill_weight",
            "is 'class_ratio', but the tasks of stream.kind data bring no new classes; allowed: a number",
        )


def _check_memory(config: Config) -> None:
    """What needs a memory, and what mixing its images leaves nothing for."""
    replay, stored = config.replay, config.classifier.distill == "stored_logits"
    if replay.policy == "none" and replay.mix != "none":
        raise ConfigError("replay.mix", f"is {replay.mix!r}, but replay.policy none keeps no images; allowed: none")
    method = config.method.name
    if replay.mix != "none" and not method_class(method).takes_mixed:
        problem = f"is {replay.mix!r}, but {method} has no loss for mixed images"
        raise ConfigError("replay.mix", f"{problem}; allowed with it: none")
    if replay.policy == "none" and method == "osiris" and config.method.stability == "distill":
        problem = "is 'distill', but with replay.policy none the second projector, which it is for, is not trained"
        raise ConfigError("method.stability", f"{problem}; allowed: replay, or another replay.policy")
    if replay.policy == "none" and stored:
        problem = "is 'stored_logits', but replay.policy none keeps no images to store them with"
        raise ConfigError("classifier.distill", f"{problem}; allowed: soft_label")
    if replay.mix != "none" and stored:
        problem = f"is 'stored_logits', but with replay.mix {replay.mix} no replay image stays unmixed"
        raise ConfigError("classifier.distill", f"{problem}; allowed: soft_label")
    if stored and config.labels.fraction == 0:
        problem = "is 'stored_logits', but with labels.fraction 0 the classifier learns nothing that could be stored"
        raise ConfigError("classifier.distill", f"{problem}; allowed: soft_label")
