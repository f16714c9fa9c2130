"""Small runs shared by the tests: narrow networks on the bundled digits, here or in a process that can be killed."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ["KAIZEN_THREADS"] = os.environ.get("KAIZEN_THREADS") or "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TINY = [
    *("--encoder.width", "4", "--optim.epochs", "2", "--optim.warmup_epochs", "1", "--optim.batch", "90"),
    *("--replay.batch", "24", "--replay.per_class", "4", "--method.projector_hidden", "32"),
    *("--optim.name", "lars", "--optim.lr", "1", "--optim.classifier_lr", "0.1", "--classifier.distill_weight", "2"),
    *("--distill.hidden", "32", "--classifier.hidden", "[16]", "--log.every_steps", "1", "--run.checkpoint_every", "2"),
    *("--eval.readers", "[classifier]"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where there is none."""
    if gpu := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture
def accelerate_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what an earlier test has left in Accelerate, which keeps a process' first precision, and in torch."""
    import torch
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache of decoded images that lives as long as the tests."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def config(cache: str) -> Any:
    """The configuration of a narrow network on the digits, for tests that read features of them."""
    from kaizen.cli.resolve import resolve

    return resolve("digits", {"data.cache_dir": cache, "encoder.width": "8", "eval.knn_k": "7"})[1]


@pytest.fixture(scope="session")
def stream(config: Any) -> Any:
    """Its data, cut into tasks."""
    from kaizen.data.load import load_stream

    return load_stream(config)


@pytest.fixture
def tiny(cache: str, tmp_path: Path) -> list[str]:
    """Arguments of a run of seconds: five tasks of digits, six steps each."""
    return ["digits", *TINY, "--data.cache_dir", cache, "--run.dir", str(tmp_path / "run")]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Runs in this process take over signals; give them back."""
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in held.items():
        signal.signal(number, handler)


def _train(arguments: Sequence[str], environment: dict[str, str], printed: str) -> None:
    from kaizen.commands.train import main

    os.environ.update(environment)
    if printed:
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)


class Launcher:
    """Starts runs in processes of their own, from a server that has imported everything once."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["kaizen.training.trainer", "kaizen.commands.train", "sklearn.datasets"])

    def start(self, arguments: Sequence[str], printed: str = "", **environment: str) -> multiprocessing.Process:
        """Start a run, which prints to the file `printed`, if one is given."""
        process = self._context.Process(target=_train, args=(list(arguments), environment, printed), daemon=True)
        process.start()
        return process

    def start_several(self, world: int, arguments: Sequence[str], printed: str = "") -> list[multiprocessing.Process]:
        """Start a run of several processes with what torchrun sets for them, by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "1"}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        return [self.start(arguments, printed, **shared, **own) for own in ranks]

    def run_several(self, world: int, arguments: Sequence[str], printed: str = "") -> list[int | None]:
        """A whole run of several processes; their exit codes."""
        processes = self.start_several(world, arguments, printed)
        for process in processes:
            process.join(400)
        return [process.exitcode for process in processes]

    def run(self, arguments: Sequence[str]) -> int | None:
        process = self.start(arguments)
        process.join(120)
        return process.exitcode


@pytest.fixture(scope="session")
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture(scope="session")
def undisturbed(launcher: Launcher, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert launcher.run(["digits", *TINY, "--data.cache_dir", cache, "--run.dir", str(run)]) == 0
    return run
