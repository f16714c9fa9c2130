"""`python -m kaizen cache`: lists the data sets whose pixels or index are kept, and deletes them."""

from collections.abc import Sequence

from kaizen.commands.parser import Parser
from kaizen.data.cache import cache_folder, clear, entries
from kaizen.errors import ConfigError

USAGE = "python -m kaizen cache [--clear [NAME]] [--data.cache_dir DIR]"
ABOUT = "List the cache of images: name, size, age and source of each data set. A cleared set is built again."
NAMED = 12
"""Number of digits of a name that are shown."""


def main(tokens: Sequence[str]) -> int:
    """List the cache, delete all of it, or delete the data sets with one name or source."""
    parser = Parser(USAGE, ABOUT)
    parser.add_argument(
        "--clear", nargs="?", const="all", metavar="NAME", help="delete one (by name or source), or all"
    )
    parser.add_argument("--data.cache_dir", dest="cache_dir", metavar="DIR", help="the cache; default ~/.cache/kaizen")
    given = parser.parse_args(tokens)
    cache = cache_folder(given.cache_dir)
    found, wanted = entries(cache), given.clear
    if wanted not in (None, "all"):
        found = [entry for entry in found if wanted and (entry.source == wanted or entry.path.name.startswith(wanted))]
        if not found:
            raise ConfigError("--clear", f"is {wanted!r}; allowed: a name or source that the cache command lists")
    if wanted is not None:
        found = [entry for entry in found if not entry.is_in_work]
    for entry in found:
        if wanted is not None:
            clear(entry)
        print(f"{entry.path.name[:NAMED]}  {_size(entry.bytes):>9}  {_age(entry.age):>8}  {entry.source or '-'}")
    print(f"{_size(sum(entry.bytes for entry in found))} {'in' if wanted is None else 'deleted from'} {cache}")
    return 0


def _size(count: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _age(seconds: float) -> str:
    """Seconds in the largest unit that gives at least two."""
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 60:.0f} min"
