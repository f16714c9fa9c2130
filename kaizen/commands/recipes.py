"""`python -m kaizen recipes`: the shipped recipes and the presets, one line each."""

from collections.abc import Sequence

from kaizen.cli.shipped import description, shipped_presets, shipped_recipes
from kaizen.commands.parser import Parser


def main(tokens: Sequence[str]) -> int:
    """Print name and description of every shipped recipe, and of every preset."""
    Parser("python -m kaizen recipes", "List the shipped recipes and presets, one line each.").parse_args(tokens)
    recipes, presets = shipped_recipes(), {f"--preset {name}": text for name, text in shipped_presets().items()}
    width = max(map(len, [*recipes, *presets]))
    for number, listed in enumerate((recipes, presets)):
        print(end="\n" * number)
        for name, text in listed.items():
            print(f"{name:{width}}  {description(text)}")
    print("\nParts of your own (method, distiller, encoder, reader, policy, operation): as --method.name FILE.py:NAME")
    return 0
