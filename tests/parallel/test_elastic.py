"""A run resumes with a different number of processes, and with FSDP2 or DDP: the same samples, views and curve."""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import TINY, Launcher
from launches import configured, finish, start
from runs import log_of
from safetensors.torch import load_file

from kaizen.run.measures import MEASURES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# A twin, a teacher, a memory chosen by features, and batches of 89 + 24 images, uneven over two and four processes.
RUN = ["digits", *TINY, "--method.name", "byol", "--method.predictor_hidden", "16", "--encoder.norm", "group"]
RUN += ["--optim.batch", "89", "--optim.name", "adamw", "--optim.lr", "0.003", "--optim.classifier_lr", "0.001"]
RUN += [
    "--replay.policy",
    "herding",
    "--stream.tasks",
    "2",
    "--run.checkpoint_every",
    "5",
    "--run.keep_checkpoints",
    "99",
]
FOUND, STEPS = "task-01_step-00000020", 32
"""A checkpoint in the middle of the second task, and steps of the run."""

Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: str, launcher: Launcher) -> Runs:
    """The undisturbed run of each kind, made at its first use."""
    return _made(tmp_path_factory.mktemp("whole"), cache, launcher)


def train(launcher: Launcher, kind: str, printed: Path, *arguments: str) -> str:
    """A whole run on "1", "2" or "4" processes with DDP, or on two with "fsdp"; returns what it printed."""
    if kind == "fsdp":
        configuration = configured("fsdp2", "--num_processes", "2", "--mixed_precision", "no")
        return finish(start(configuration, "tests/parallel/fsdp.py", *arguments))
    assert launcher.run_several(int(kind), arguments, str(printed)) == [0] * int(kind)
    return printed.read_text()


def _made(folder: Path, data: str, launcher: Launcher) -> Runs:
    @cache
    def run(kind: str) -> Path:
        sharded = ["--teacher.shard", "true"] if kind == "fsdp" else []
        path = folder / kind
        arguments = [*RUN, *sharded, "--data.cache_dir", data, "--run.dir", str(path)]
        (folder / f"{kind}.txt").write_text(train(launcher, kind, folder / f"{kind}.out", *arguments))
        return path

    return run


def curve(run: Path) -> list[list[float]]:
    return [[value for key, value in line.items() if key.startswith("loss/")] for line in log_of(run)]


def test_fsdp_gives_the_losses_of_ddp_and_each_process_has_half_of_the_state(whole: Runs) -> None:
    ddp, fsdp = curve(whole("2")), curve(whole("fsdp"))
    assert len(ddp) == len(fsdp) == STEPS
    for step, (one, other) in enumerate(zip(ddp, fsdp, strict=True)):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4), step
    for one, other in zip(log_of(whole("2")), log_of(whole("fsdp")), strict=True):
        for name in MEASURES:  # norms of whole parameters, not of a process' shards
            assert other[name] == pytest.approx(one[name], rel=1e-2), (name, one["step"])
    printed = whole("fsdp").with_suffix(".txt").read_text()
    held = [list(map(int, found.split())) for found in re.findall(r"held ([\d ]+);", printed)]
    assert {tuple(line[:2]) for line in held} == {(rank, task) for rank in range(2) for task in range(2)}
    for task in range(2):
        student = load_file(whole("2") / f"tasks/task-{task:02d}/student.safetensors")
        method = load_file(whole("2") / f"tasks/task-{task:02d}/method.safetensors")
        trained = [t for name, t in {**student, **method}.items() if "running" not in name and "batches" not in name]
        twin = [
            t
            for name, t in method.items()
            if name.startswith("twin.") and "running" not in name and "batches" not in name
        ]
        followed = sum(4 * t.numel() for t in twin)
        parameters = sum(4 * t.numel() for t in trained) - followed
        for _, of, params, state, following in held:
            if of == task:
                assert params == pytest.approx(parameters / 2, rel=0.02)
                assert state == pytest.approx(parameters, rel=0.02), "two moments of each parameter"
                assert following == pytest.approx(followed / 2, rel=0.02)


@pytest.mark.parametrize(("before", "after"), [("1", "2"), ("2", "1"), ("4", "2"), ("fsdp", "2"), ("2", "fsdp")])
def test_a_run_resumes_under_another_launch(
    before: str, after: str, whole: Runs, cache: str, tmp_path: Path, launcher: Launcher
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole(before), run)
    shutil.rmtree(run / "tasks" / "task-01")
    for path in (run / "checkpoints").iterdir():
        if path.name > FOUND:
            shutil.rmtree(path)
    assert (run / "checkpoints" / FOUND).is_dir()
    printed = train(launcher, after, tmp_path / "printed", *RUN, "--data.cache_dir", cache, "--run.dir", str(run))
    assert "the run resumes, but not bit for bit" in printed
    expected, found = curve(whole(before)), curve(run)
    assert len(found) == len(expected) == STEPS
    for step, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert other == pytest.approx(one, rel=5e-3, abs=5e-3), step
    memory = [load_file(path / "tasks/task-01/replay.safetensors") for path in (whole(before), run)]
    assert memory[0].keys() == memory[1].keys()
    names = [sorted(load_file(path / "tasks/task-01/student.safetensors")) for path in (whole(before), run)]
    assert names[0] == names[1]
