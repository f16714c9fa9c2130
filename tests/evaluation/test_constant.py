"""A classifier that gives one class for every image is told, by the run and by eval."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import run_of, short

from kaizen.commands import COMMANDS, run
from kaizen.commands.train import main
from kaizen.config.schema import ClassifierConfig, Config
from kaizen.data.load import Stream, load_stream
from kaizen.evaluation.evaluator import Evaluator
from kaizen.model.learner import Network
from kaizen.parallel import Parallel


def network_that_prefers(config: Config, label: int) -> Network:
    network = Network(config, 10)
    with torch.no_grad():
        network.classifier[-1].bias[label] = 1e6
    return network


def test_one_class_for_all_images_is_noticed_whichever_readers_are_asked_for(config: Config, stream: Stream) -> None:
    evaluator, network = Evaluator(config, stream, Parallel()), network_that_prefers(config, 3)
    measured = evaluator.row(network, 1, ("knn",))
    assert measured.constant == 3
    [line] = evaluator.notes(1, measured)
    assert line.startswith("note: after task 1 the classifier gives the class '3' for every test image")
    assert "lower optim.classifier_lr (0.001) or raise optim.warmup_epochs (3)" in line
    assert evaluator.row(network, -1, ("classifier",)).constant is None, "an untrained one guesses"
    varied = evaluator.row(network_that_prefers(config, 3), 1, ("classifier",))._replace(constant=None)
    assert evaluator.notes(1, varied) == []


def test_nothing_is_said_where_one_class_is_right_or_nothing_was_taught(config: Config, stream: Stream) -> None:
    network = network_that_prefers(config, 3)
    ten = load_stream(config.model_copy(update={"stream": config.stream.model_copy(update={"tasks": 10})}))
    assert Evaluator(config, ten, Parallel()).row(network, 0, ("classifier",)).constant is None
    assert Evaluator(config, ten, Parallel()).row(network, 1, ("classifier",)).constant == 3
    untaught = config.model_copy(update={"classifier": ClassifierConfig(hidden=(128,), weight=0.0)})
    assert Evaluator(untaught, stream, Parallel()).row(network, 1, ("classifier",)).constant is None
    unlabelled = replace(stream, labels=stream.labels * 0 - 1)
    assert Evaluator(config, unlabelled, Parallel()).row(network, 1, ("classifier",)).constant is None


def test_the_run_and_eval_say_so_after_each_task(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = run_of(tiny)
    monkeypatch.setattr("kaizen.evaluation.evaluator.constant", lambda guesses, truths, taught: 7 if truths else None)
    assert main(short(tiny)) == 0
    out = capsys.readouterr().out
    assert "caution             optim.classifier_lr 0.1 after 0 steps of warm-up" in out
    expected = [f"note: after task {task} the classifier gives the class '7'" for task in range(3)]
    assert [line[: len(expected[0])] for line in out.splitlines() if "note: after task" in line] == expected
    assert run(["eval", str(path)], COMMANDS) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: after task")]
    assert len(told) == 3
    assert "lower optim.classifier_lr (0.1)" in told[0]
