"""`python -m kaizen recipes`: the shipped recipes, one line each."""

from collections.abc import Sequence

from kaizen.cli import shipped_recipes
from kaizen.errors import ConfigError


def main(tokens: Sequence[str]) -> int:
    """Print name and description of every shipped recipe."""
    if {"-h", "--help"} & set(tokens):
        print("usage: python -m kaizen recipes\n\nList the shipped recipes, one line each.")
        return 0
    if tokens:
        raise ConfigError("recipes", f"takes no arguments, found {list(tokens)}")
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, text in recipes.items():
        print(f"{name:{width}}  {text.splitlines()[0].removeprefix('# ')}")
    return 0
