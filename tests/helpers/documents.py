"""The documents of the project, and the commands in their code blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launches import ROOT

FOLDERS = ("accelerate_configs", "kaizen", "launch", "tests")
DOCUMENTS = [*sorted(ROOT.glob("*.md"), reverse=True), *(f for d in FOLDERS for f in sorted((ROOT / d).rglob("*.md")))]
"""README.md first: later documents use the runs that its commands leave."""


@dataclass(frozen=True)
class Command:
    """One command of a code block: where it stands, its environment and its words."""

    document: Path
    environment: dict[str, str]
    words: list[str]

    def __str__(self) -> str:
        assigned = [f"{key}={value}" for key, value in self.environment.items()]
        return shlex.join([*assigned, *self.words])


def commands_of(document: Path) -> Iterator[Command]:
    for block in re.findall(r"^ *```bash\n(.*?)^ *```$", document.read_text(), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    count = next((i for i, w in enumerate(words) if not re.match(r"[A-Z_]+=", w)), len(words))
                    environment = dict(assigned.split("=", 1) for assigned in words[:count])
                    program = words[count].removeprefix(".venv/bin/").replace("python3", "python")
                    yield Command(document, environment, [program, *words[count + 1 :]])
                    words = []
