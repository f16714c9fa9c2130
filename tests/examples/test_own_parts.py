"""Parts of the user's own: the examples of this folder train, resume and are checked like ours."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Launcher
from launches import ROOT
from runs import log_of, short, snapshots, status_of, wait_for_step

from kaizen import load_model
from kaizen.cli.resolve import parse_arguments, resolve, resolve_run
from kaizen.cli.sweep import SweepRun
from kaizen.commands import COMMANDS, run
from kaizen.commands.sweep import is_done
from kaizen.commands.train import main
from kaizen.errors import ConfigError

HERE = Path(__file__).parent
READER = "own_reader.py:CosineMeans"


def own(place: Path = HERE) -> list[str]:
    """Arguments that name an own part of each kind."""
    return [
        *("--method.name", f"{place}/own_method.py:AlignUniform", "--method.uniformity", "0.5"),
        *("--distill.name", f"{place}/own_distiller.py:Relations", "--distill.power", "2"),
        *("--eval.readers", f"classifier,{place}/{READER}"),
        *("--encoder.name", f"{place}/own_encoder.py:Tiny", "--encoder.depth", "3"),
        *("--replay.policy", f"{place}/own_policy.py:ByNorm", "--views.extra", f"{place}/own_operation.py:Erase"),
    ]


@pytest.fixture(scope="module")
def arguments(cache: str) -> list[str]:
    """A small run whose parts are all the user's own."""
    sizes = [
        "--encoder.width",
        "4",
        "--replay.per_class",
        "4",
        "--optim.batch",
        "89",
        "--method.projector_hidden",
        "32",
    ]
    keys = ["--data.cache_dir", cache, "--log.every_steps", "1", "--run.checkpoint_every", "2"]
    return short(["digits", *sizes, *keys, *own()])


@pytest.fixture(scope="module")
def trained(launcher: Launcher, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "run"
    assert launcher.run([*arguments, "--run.dir", str(path)]) == 0
    return path


def refused(tokens: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*parse_arguments(tokens))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_own_parts_train_and_are_recorded_with_the_hash_of_their_file(trained: Path) -> None:
    found = json.loads((trained / "results.json").read_text())["readers"]
    assert list(found) == ["classifier", READER]
    assert found[READER]["protocol"].startswith("nearest class mean")
    assert found[READER]["matrix"][-1][0] > 0.3
    text = (trained / "config.yaml").read_text()
    assert text.count(".py:") == 2 * 5 + 3  # each as a value (one of them in both views) and in the section `code`
    assert "own_policy.py" in text
    assert all(line["loss/ssl"] != 0 for line in log_of(trained))


def test_a_run_of_own_parts_resumes_byte_for_byte_from_another_directory(
    launcher: Launcher, arguments: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    monkeypatch.chdir(HERE)
    near = [text.replace(f"{HERE}/", "") for text in arguments]
    process = launcher.start([*near, "--run.dir", str(path)])
    wait_for_step(path, 5, process.is_alive)
    (path / "stop").touch()
    process.join(60)
    assert process.exitcode == 75
    monkeypatch.chdir(tmp_path)
    assert launcher.run([str(path / "config.yaml"), "--run.dir", str(path)]) == 2
    assert launcher.run([str(path / "config.yaml"), "--run.dir", str(path), "--trust-code"]) == 0
    assert snapshots(path) == snapshots(trained)


def test_a_changed_file_is_refused_unless_it_is_allowed(
    arguments: list[str], trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, copies = tmp_path / "run", tmp_path / "code"
    shutil.copytree(trained, path)
    shutil.copytree(HERE, copies)
    moved = [text.replace(str(HERE), str(copies)) for text in arguments]
    assert main([*moved, "--run.dir", str(path)]) == 0, "the same code at another place"
    changed = tmp_path / "changed"
    shutil.copytree(HERE, changed)
    with (changed / "own_method.py").open("a") as file:
        file.write("# other\n")
    moved = [text.replace(str(HERE), str(changed)) for text in arguments]
    for words, done in ((arguments, True), (moved, False)):
        assert is_done(path, SweepRun("", 1, (), resolve(*parse_arguments(words))[1])) == done
    capfd.readouterr()
    assert main([*moved, "--run.dir", str(path)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: run.allow_changed_code: is false, but ")
    assert "own_method.py:AlignUniform is no longer what" in said
    assert main([*moved, "--run.dir", str(path), "--run.allow_changed_code", "true"]) == 0


def test_a_run_directory_runs_no_code_without_consent(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, trap, seen = tmp_path / "run", tmp_path / "trap.py", tmp_path / "seen"
    shutil.copytree(trained, path)
    trap.write_text(f"open({str(seen)!r}, 'w')\n")
    text = (path / "config.yaml").read_text().replace(f"{HERE}/own_method.py", str(trap))
    (path / "config.yaml").write_text(text)
    config, inside = str(path / "config.yaml"), ["--run.dir", str(path)]
    assert run(["eval", str(path)], COMMANDS) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: --trust-code: is needed for ")
    assert f"{trap}:AlignUniform" in said
    assert main([config, *inside]) == 2
    assert main([config, *inside, "--method.name", "simclr"]) == 2
    assert main(["digits", *inside]) == 2
    assert run(["show", config], COMMANDS) == 2
    assert run(["eval", str(path), "--readers", f"{HERE}/{READER}"], COMMANDS) == 2
    with pytest.raises(ConfigError, match="trust-code"):
        resolve_run(path, {})
    assert run(["report", str(path), "--out", str(tmp_path / "out")], COMMANDS) == 0
    assert READER in (tmp_path / "out" / "report.md").read_text()
    assert not seen.exists()
    assert run(["eval", str(path), "--trust-code"], COMMANDS) == 2
    assert seen.exists()


def test_a_model_with_an_own_encoder_is_loaded_with_consent_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((8, 8), dtype=np.uint8)
    with pytest.raises(ConfigError, match="--trust-code: is needed for"):
        load_model(trained)
    assert len(load_model(trained, trust_code=True).predict(image)[0]) == 10
    assert run(["export", str(trained), "--out", str(tmp_path / "out")], COMMANDS) == 2
    assert "would not travel along" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_keeps_its_own_parts_for_whoever_trusts_it(
    arguments: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are gone, as on another machine."""
    code, path = tmp_path / "code", tmp_path / "run"
    shutil.copytree(HERE, code)
    gone = [text.replace(str(HERE), str(code)) for text in arguments]
    shutil.copytree(trained, path)
    assert main([*gone, "--run.dir", str(path)]) == 0
    (code / "own_encoder.py").write_text("an encoder that is another one now")
    (code / "own_method.py").unlink()
    before = json.loads((path / "results.json").read_text())["readers"]
    assert run(["eval", str(path), "--trust-code"], COMMANDS) == 0
    assert json.loads((path / "results.json").read_text())["readers"] == before
    assert f"{path}/code/" in resolve_run(path, {}, trust_code=True)[1].method.name
    shutil.rmtree(code)
    monkeypatch.chdir(tmp_path)
    assert main(["run/config.yaml", "--trust-code", "--run.dir", "run"]) == 0
    shutil.move(path, tmp_path / "moved")
    assert run(["eval", str(tmp_path / "moved"), "--trust-code"], COMMANDS) == 0


def test_eval_takes_a_reader_that_its_user_names(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    before = json.loads((path / "results.json").read_text())["readers"]
    assert run(["eval", str(path), "--trust-code", "--readers", f"{HERE}/{READER}"], COMMANDS) == 0
    assert json.loads((path / "results.json").read_text())["readers"] == before


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("method.uniformity", "-1", "method.uniformity: is -1; allowed: greater than or equal to 0"),
        ("method.uniformty", "1", "method.uniformty: is not a key; did you mean method.uniformity?"),
        ("method.sharpness", "much", "method.sharpness: is 'much'; allowed: a number, as 2"),
        ("distill.power", "0", "distill.power: is 0; allowed: greater than 0, as 1"),
        ("encoder.depth", "1.5", "encoder.depth: is 1.5; allowed: a whole number, as 2"),
        ("encoder.norm", "group", "encoder.norm: is group, which "),
        ("method.name", "mine.py", "method.name: is 'mine.py'; allowed: a class in that file, as mine.py:Name"),
        ("method.name", "simclrr", "method.name: is 'simclrr'; did you mean simclr? allowed: simclr, "),
        ("distill.name", "relations", "distill.name: is 'relations'; allowed: auto, none, contrastive, "),
        ("encoder.name", "resnet19", "encoder.name: is 'resnet19'; did you mean resnet18? allowed: resnet18, "),
        ("replay.policy", "last", "replay.policy: is 'last'; allowed: none, random, "),
        ("views.1.extra", "erase", "views.1.extra.0: is 'erase'; allowed: path/to/file.py:Name, "),
        ("method.name", "none.py:Mine", f"method.name: is in {ROOT}/none.py, which cannot be read (No such file"),
        ("method.name", "none:Mine", "method.name: is 'none:Mine', which cannot be imported: ModuleNotFoundError: "),
        ("method.name", "kaizen.cli:Mine", "method.name: is 'kaizen.cli:Mine', but module kaizen.cli has no class of"),
        ("method.name", f"{HERE}/own_method.py:Mine", f"method.name: is '{HERE}/own_method.py:Mine', but "),
        ("method.name", f"{HERE}/own_reader.py:CosineMeans", f"method.name: is '{HERE}/own_reader.py:CosineMeans', wh"),
    ],
)
def test_wrong_names_and_keys_are_told_as_those_of_our_parts(
    key: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert refused(["digits", *own(), f"--{key}", text]).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", "file.py cannot be imported: line 1: SyntaxError: "),
        ("import math\n\nmath.none()\n", "file.py cannot be imported: line 3: AttributeError: "),
        ("import sys\nsys.exit(0)\n", "file.py cannot be imported: line 2: SystemExit: 0"),
        ("from kaizen.model.methods.base import Method\nclass Mine(Method): pass\n", "which does not define loss"),
        ("class Mine: pass\n", "which is a class that extends nothing; allowed: a subclass of kaizen.model.methods."),
        ("Mine = 3\n", "which is no class but int; allowed: a subclass of kaizen.model.methods.base.Method"),
        (
            "from kaizen.model.methods.simclr import *\nclass Mine(SimCLR):\n class Settings(MethodSettings): a: int\n",
            "whose Settings has no default for a; allowed: a default value",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(text)
    assert said in refused(["digits", "--method.name", f"{tmp_path}/file.py:Mine"])


def test_a_policy_and_an_operation_that_give_something_else_are_named(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.py").write_text(
        "from kaizen.data.operations import ViewOperation\nfrom kaizen.data.policies import ReplayPolicy\n"
        "class Half(ViewOperation):\n def __call__(self, images, draws): return images[:, :, ::2]\n"
        "class Twice(ReplayPolicy):\n def order(self, candidates): return [0] * candidates.keep\n"
    )
    for key, name, said in (("views.extra", "Half", "which gave torch.float32"), ("replay.policy", "Twice", "twice")):
        assert main([*arguments, f"--{key}", f"{tmp_path}/wrong.py:{name}", "--run.dir", str(tmp_path / name)]) == 2
        assert said in capfd.readouterr().err
        assert status_of(tmp_path / name)["exit_code"] == 2


def test_a_plug_in_is_found_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package says in its metadata which classes it brings."""
    (tmp_path / "mine-1.dist-info").mkdir()
    (tmp_path / "mine-1.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (tmp_path / "mine-1.dist-info" / "entry_points.txt").write_text("[kaizen.methods]\nalign = mine:AlignUniform\n")
    shutil.copy(HERE / "own_method.py", tmp_path / "mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    config: Any = resolve("digits", {"method.name": "align", "method.sharpness": "3"})[1]
    assert (config.method.name, config.method.sharpness) == ("align", 3)
    assert "align" in refused(["digits", "--method.name", "nothing"])


def test_the_hash_of_a_configuration_does_not_know_where_the_files_are(tmp_path: Path) -> None:
    shutil.copytree(HERE, tmp_path / "else")
    hashes = {resolve(*parse_arguments(["digits", *own(place)]))[1].hash() for place in (HERE, tmp_path / "else")}
    assert len(hashes) == 1


@pytest.mark.slow
def test_two_processes_train_own_parts_as_one_does(
    arguments: list[str], trained: Path, tmp_path: Path, launcher: Launcher
) -> None:
    path = tmp_path / "run"
    assert launcher.run_several(2, [*arguments, "--run.dir", str(path)]) == [0, 0]
    ones, twos = ([line["loss/total"] for line in log_of(place)] for place in (trained, path))
    assert twos[:3] == pytest.approx(ones[:3], rel=1e-4)
    assert os.listdir(path / "tasks") == os.listdir(trained / "tasks")
