"""The documents: links lead somewhere, commands in code blocks are valid, and the slow test executes them."""

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from documents import DOCUMENTS, Command, commands_of
from launches import ROOT
from PIL import Image
from small_sources import picture

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.cli.sweep import read_sweep
from kaizen.commands import COMMANDS, bench, cache, eval, export, extend, predict, report, run, sweep, train
from kaizen.parallel.launch import SEVERAL_ON_CPU

SMALL = (
    "--encoder.width 4 --stream.tasks 2 --optim.epochs 1 --optim.batch 128 --optim.warmup_epochs 0 "
    "--eval.readers classifier"
)
GPU_FILES = ("single_gpu", "multi_gpu", "multi_node", "fsdp2")
SEVERAL = ("cpu_2.yaml",)
"""Launches of several processes, which tests/parallel and tests/launch start."""
LONG = ("cifar100-", "imagenet100-", "launch/sweeps/digits.txt", "launch/sweeps/fashion", "data/fashion")
LONG += ("launch/sweeps/statistics.txt", "runs/statistics")
"""What takes minutes to hours on a CPU, or needs the hub; tests/README.md says what is tested instead."""
BENCHES = ("--start", "--tasks", "--checkpoints", "-m kaizen bench digits ")
"""Measurements that tests/bench makes, in small; the bench of another recipe is executed."""
TOOLS = ("pip", "ruff", "mypy", "sha256sum", "touch", "export")
"""Programs whose arguments are not ours to check."""


ALL = [command for document in DOCUMENTS for command in commands_of(document)]
CLIP_ART = "/usr/share/openclipart/png"
CLASSES = "computer shapes signs_and_symbols recreation people transportation food animals"
"""Of them the README makes tasks; here a few small images stand for each."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a fresh checkout after the steps that the documents describe in words."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("train.py", "accelerate_configs", "kaizen", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "launch/sweeps").mkdir(parents=True)
    for file in (ROOT / "launch/sweeps").glob("*.txt"):
        lines = file.read_text().replace("{0,1,2}", "0").splitlines()
        changed = [line if line.startswith("#") else f"{line} {SMALL}" for line in lines]
        (folder / "launch/sweeps" / file.name).write_text("\n".join(changed))
    for document in DOCUMENTS:
        saved = r"recipe as `([\w./-]+\.yaml)`:\n+```yaml\n(.*?)```"
        for name, text in re.findall(saved, document.read_text(), flags=re.DOTALL):
            (folder / name).write_text(text)
    for split, images in (("train", 6), ("test", 2)):
        for number in range(images * 6):
            file = folder / f"data/pets/{split}/breed{number % 6}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (40 * (number % 6), number, 255 - 30 * (number % 6))).save(file)
        for name in ("breed0", "new"):
            shutil.copytree(folder / f"data/pets/{split}/breed0", folder / f"data/more/{split}/{name}")
    for seed, name in enumerate(CLASSES.split()):
        for number in range(5):
            file = folder / f"data/clipart/{name}/kind{number % 2}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * seed + number, (90 + number, 70), "RGBA").save(file)
    shutil.copytree(folder / "data/pets", folder / "moved/pets")
    shutil.copytree(folder / "data/pets", folder / "data/corrupted")
    Image.new("RGB", (16, 16)).save(folder / "data/corrupted/test/breed0/0.png")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return monkeypatch


class Reached(Exception):
    """A command line was accepted."""


def check_until(called: str, module: ModuleType, tokens: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a command until it calls a function of its module, which it does once its arguments are accepted."""

    def reached(*arguments: object) -> None:
        raise Reached

    with patch.context() as inner:
        inner.setattr(module, called, reached)
        with pytest.raises(Reached):
            module.main(tokens)


def check(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Fail unless a command is one that its program accepts; nothing is trained."""
    match command.words:
        case ["python", "train.py", *tokens]:
            resolve(*parse_arguments(tokens))
        case ["python", "-m", "kaizen", *tokens]:
            check_kaizen(tokens, patch)
        case ["accelerate", "launch", *tokens]:
            check_launch(command, tokens, patch)
        case ["launch/submit", *tokens]:
            with patch.context() as inner:
                inner.chdir(ROOT)
                assert submit().main([*tokens, *([] if "--dry-run" in tokens else ["--dry-run"])]) == 0
        case ["sbatch", *tokens]:
            file, *arguments = [token for token in tokens if not token.startswith("--")]
            assert (ROOT / file).is_file()
            if file == "launch/array.sbatch":
                assert read_sweep(Path(arguments[0]))
            else:
                resolve(*parse_arguments(arguments[1:]))
        case ["python", "tests/fashion.py" | "tests/photographs.py", _, *counts]:
            assert [float(count) for count in counts if not count.startswith("--")]
        case ["python", "tests/statistics_gap.py", *runs]:
            assert runs
        case ["python", "-m", "pytest", *tokens]:
            named = [token for token in tokens if "/" in token]
            assert all((ROOT / token).exists() for token in named)
        case ["python", "-m", "venv", ".venv"]:
            pass
        case ["bash", file]:
            assert (ROOT / file).is_file()
        case [tool, *_] if tool in TOOLS:
            pass
        case _:
            pytest.fail(f"{command.document}: this test does not know how to check: {command}")


def check_kaizen(tokens: list[str], patch: pytest.MonkeyPatch) -> None:
    match tokens:
        case ["bench", *rest]:
            check_until("_check_options", bench, rest, patch)
            bench._check_options(bench._parser().parse_known_args(rest)[0])
        case ["report", *rest]:
            check_until("find_runs", report, rest, patch)
        case ["eval", *rest]:
            check_until("_evaluate", eval, rest, patch)
        case ["predict", *rest]:
            check_until("_images", predict, rest, patch)
        case ["export", *rest]:
            check_until("user_path", export, rest, patch)
        case ["cache", *rest]:
            check_until("entries", cache, rest, patch)
        case ["extend", *rest]:
            check_until("_extend", extend, rest, patch)
        case ["show", *rest]:
            resolve(*parse_arguments(rest))
        case ["sweep", file, *rest]:  # what shipped files ask for is checked by tests/cli/test_sweep.py
            assert (ROOT / file).is_file()
            check_until("read_sweep", sweep, [file, *rest], patch)
        case _:
            assert run(tokens, COMMANDS) == 0


def check_launch(command: Command, tokens: list[str], patch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(tokens)
    assert given.config_file, "without a file accelerate guesses, and warns"
    assert load_config_from_file(given.config_file).num_processes
    if given.config_file.endswith("cpu_2.yaml"):
        assert command.environment["ACCELERATE_USE_CPU"] == "1"
    words = ["python", *(["-m"] if given.module else []), given.training_script, *given.training_script_args]
    check(Command(command.document, command.environment, words), patch)


def submit() -> ModuleType:
    loader = SourceFileLoader("submit", str(ROOT / "launch/submit"))
    module = module_from_spec(spec_from_loader("submit", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def test_the_documents_are_found() -> None:
    assert {"README.md", "kaizen/recipes/RESULTS.md"} <= {str(d.relative_to(ROOT)) for d in DOCUMENTS}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_valid(document: Path, inside: pytest.MonkeyPatch) -> None:
    for command in ALL:
        if command.document == document:
            try:
                check(command, inside)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{command}\n{type(error).__name__}: {error}")


def test_the_launch_of_several_processes_on_a_cpu_is_the_one_that_messages_name() -> None:
    assert f"`{SEVERAL_ON_CPU}`" in (ROOT / "accelerate_configs/README.md").read_text()


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("https://", "mailto:")):
            name, _, anchor = target.partition("#")
            file = (document.parent / name).resolve() if name else document
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE) if anchor else []
            if not file.exists() or (anchor and anchor not in map(slug, headings)):
                broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    named = re.findall(r"`((?:kaizen|launch|tests|accelerate_configs|\.ci)/[\w./-]*)`", document.read_text())
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


def is_executed(command: Command) -> bool:
    """Whether the slow test executes a command; tests/README.md lists the others."""
    text = f"{command} "
    if any(f"{name}.yaml" in text for name in GPU_FILES) or any(other in text for other in LONG + BENCHES + SEVERAL):
        return False
    if command.words[0] in ("pip", "ruff", "mypy", "bash", "sbatch", "launch/submit", "export"):
        return False
    long_reports = command.words[:4] == ["python", "-m", "kaizen", "report"] and command.document.name == "RESULTS.md"
    return not long_reports and command.words[:3] not in (["python", "-m", "venv"], ["python", "-m", "pytest"])


def execute(command: Command, small: list[str]) -> int:
    """Run a command with these keys, the last of which is data.cache_dir; returns the exit code."""
    match command.words:
        case ["python", "train.py", *tokens]:
            return train.main([*(token.replace(CLIP_ART, "data/clipart") for token in tokens), *small])
        case ["accelerate", "launch", "-q", "--config_file", "accelerate_configs/cpu.yaml", "train.py", *tokens]:
            return train.main([*tokens, *small])  # as a process of its own: tests/launch/test_accelerate_configs.py
        case ["python", "-m", "kaizen", "bench", *tokens]:
            return run(["bench", *tokens, *small, "--repetitions", "2"], COMMANDS)
        case ["python", "-m", "kaizen", "sweep", file, "--run.dir", directory, "--jobs", _]:
            for done in read_sweep(Path(file)):  # here, which is faster; the sweep finds them done
                assert train.main([*done.tokens, "--run.dir", f"{directory}/{done.name}"]) == 0
            return run(command.words[3:], COMMANDS)
        case ["python", "-m", "kaizen", "cache", *tokens]:
            return run(["cache", *tokens, *small[-2:]], COMMANDS)  # never the user's own
        case ["python", "-m", "kaizen", *tokens]:
            return run(tokens, COMMANDS)
        case words:
            return subprocess.run(" ".join(words), shell=True).returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_do_what_they_are_for(inside: pytest.MonkeyPatch, cache: str) -> None:
    failed = []
    once = {str(command): command for command in filter(is_executed, ALL)}
    for command in once.values():
        with inside.context() as patch:
            for key, value in command.environment.items():
                patch.setenv(key, value)
            small = SMALL.replace("encoder.width", "encoder.patch") if "digits-vit" in command.words else SMALL
            small = small.replace("--optim.epochs 1 ", "") if "--optim.images" in command.words else small
            small = small.replace("--encoder.width 4 ", "") if "timm:" in str(command) else small
            if code := execute(command, [*small.split(), "--data.cache_dir", cache]):
                failed.append(f"{command}: exit code {code}")
    assert not failed
