"""The order of the house: each folder of the package imports only from floors below its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import kaizen

PACKAGE = Path(kaizen.__file__).parent
FLOORS = (
    ("errors", "build"),
    ("plugins",),
    ("config", "losses"),
    ("parallel",),
    ("run",),
    ("data",),
    ("model",),
    ("cli",),
    ("evaluation",),
    ("training", "takeaway"),
    ("bench", "optim", "api"),
    ("commands",),
    ("__main__",),
)
"""From the ground up."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _imported(file: Path) -> set[str]:
    """First names below kaizen that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "kaizen":
            found |= {alias.name for alias in node.names}
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("kaizen.")}
    return found


def test_every_import_points_down() -> None:
    upwards = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            upwards += [
                f"{file.relative_to(PACKAGE)} imports kaizen.{other}"
                for other in _imported(file) - {"__version__", "STARTED"}
                if other != room and FLOOR[other] >= FLOOR[room]
            ]
    assert not upwards


def test_every_room_says_what_lives_there_and_who_may_import_it() -> None:
    rooms = {folder for folder in PACKAGE.iterdir() if list(folder.glob("*.py"))}
    assert {room.name for room in rooms} <= set(FLOOR)
    said = {room.name: ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "" for room in rooms}
    assert not [name for name, text in said.items() if "import" not in text]


def _opened_as_text(file: Path) -> Iterator[str]:
    """Calls of a file that read or write text in an encoding that they do not name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            opens = called == "open" or called.endswith((".open", ".fdopen", ".read_text", ".write_text"))
            modes = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            binary = any(isinstance(mode, str) and re.fullmatch("[rwax+]*b[rwax+]*", mode) for mode in modes)
            named = any(word.arg == "encoding" for word in node.keywords)
            if opens and called not in ("os.open", "Image.open") and not (binary or named):
                yield f"{file.name}:{node.lineno}: {ast.unparse(node)}"


def test_every_text_is_read_and_written_as_utf_8_whatever_the_locale() -> None:
    root = PACKAGE.parent
    files = [*PACKAGE.rglob("*.py"), root / "train.py", root / "launch/submit"]
    assert not [call for file in files for call in _opened_as_text(file)]


def test_no_file_is_long() -> None:
    """A file that needs more than 300 lines is two files."""
    files = [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    long = {file.name: count for file in files if (count := len(file.read_text(encoding="utf-8").splitlines())) > 300}
    assert not long
