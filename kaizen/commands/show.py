"""`python -m kaizen show RECIPE`: the resolved configuration as YAML, and the numbers derived from it."""

from collections.abc import Sequence

from kaizen.cli.resolve import left_out, parse_arguments, resolve
from kaizen.config.schema import Config, header
from kaizen.config.yaml import dump_yaml
from kaizen.data.source import KNOWN_SOURCES, KnownSource
from kaizen.errors import ConfigError
from kaizen.plugins import code_of
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import describe, make_plan


def main(tokens: Sequence[str]) -> int:
    """Print the configuration that train.py would use; the data are read only if their source is unknown."""
    if {"-h", "--help"} & set(tokens):
        from kaizen.cli.help import help_text

        usage = "python -m kaizen show [RECIPE] [--preset NAME] [--trust-code] [--section.key VALUE ...]"
        print(help_text(usage, "Print the resolved configuration."))
        return 0
    arguments = parse_arguments(tokens)
    recipe, config = resolve(*arguments)
    said, missing = left_out(*arguments), None
    try:
        facts, found = _facts(config)
        config, chosen = suit(config, facts)
        said += [*found, *describe(config, make_plan(config, facts.images, 1), 1), *chosen]
    except ConfigError as error:
        missing = error
    print(f"{header(recipe, arguments.preset)}# config hash: {config.hash()}")
    tree = config.model_dump(mode="json")
    print(dump_yaml(tree | ({"code": code} if (code := code_of(tree)) else {})), end="")
    for line in said:
        print(f"# {line}")
    if missing:
        # The configuration is valid all the same, and the data may be on a different machine.
        if missing.key != "data.source" or config.data.source not in KNOWN_SOURCES:
            raise missing
        print(f"# numbers derived from the data are missing: {missing}")
    return 0


def _facts(config: Config) -> tuple[Facts, list[str]]:
    """Sizes from which numbers are derived, and lines on what was found in the data, with its classes.

    Known sources with classes of equal size need no data for the numbers, and give no lines.
    """
    known = KNOWN_SOURCES.get(config.data.source)
    if known is not None and (sizes := _known_sizes(known, config)):
        parts = config.stream.tasks if config.stream.kind == "data" else 1
        side = config.data.image_size or known.image_size
        return Facts(tuple(sizes), known.train_images // known.classes // parts, side), []
    from kaizen.data.load import load_stream

    stream = load_stream(config)
    return Facts.of(stream), stream.describe()


def _known_sizes(known: KnownSource, config: Config) -> list[int]:
    """Training images of each task of a known source; empty if they depend on the data."""
    from kaizen.data.stream import class_stream, data_stream

    stream, images = config.stream, known.train_images
    if config.data.train_split != "train":
        return []
    if stream.kind in ("joint", "data") and stream.tasks <= images:
        return [len(part) for part in data_stream(images, stream.tasks, stream.seed, split=0)]
    if stream.kind == "class" and images % known.classes == 0:
        return [len(cut) * images // known.classes for cut in class_stream(known.classes, stream.tasks, stream.seed)]
    return []
