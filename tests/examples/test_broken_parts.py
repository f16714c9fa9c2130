"""Own parts that give something of a wrong shape: one line names them, and the mended file trains in the same run."""

from pathlib import Path

import pytest

import kaizen.plugins
from kaizen.commands.train import main

BROKEN = """
from kaizen.evaluation.readers.base import Reader
from kaizen.model.methods.base import Method


class Scores(Reader):
    def fit(self, evidence):
        pass

    def predict(self, features):
        return features


class Blind(Scores):
    sees = "everything"


class Many(Method):
    def loss(self, outputs, batch):
        return LOSS
"""


def test_a_wrong_result_of_an_own_part_is_named_and_mended_in_the_same_run(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, short = tmp_path / "mine.py", ["--stream.tasks", "2", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]
    file.write_text(BROKEN.replace("LOSS", "outputs.projections[0].sum(dim=1)"))
    run_of_many = [*tiny, *short, "--method.name", f"{file}:Many"]
    assert main(run_of_many) == 2
    assert "method.name: is Many, whose loss has the shape [90]; allowed: a tensor with a" in capfd.readouterr().err
    for reader, said in (("Blind", "whose sees is 'everything'; allowed: run, seen"), ("Scores", "predict gave [")):
        assert main([*tiny, *short, "--run.dir", str(tmp_path / reader), "--eval.readers", f"{file}:{reader}"]) == 2
        assert said in capfd.readouterr().err
    # Modules are run once in a process; a user's next command is a new one.
    kaizen.plugins.own_class.cache_clear()
    kaizen.plugins._modules.clear()
    file.write_text(BROKEN.replace("LOSS", "batch.share(outputs.projections[0].square().mean())"))
    assert main(run_of_many) == 0, "nothing was saved with the other file"
