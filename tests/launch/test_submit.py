"""launch/submit without Slurm: the jobs that it would submit, and the arguments that it refuses."""

import json
import re
import shlex
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY
from launches import ROOT
from runs import sweep_file

from kaizen.cli.sweep import read_sweep
from kaizen.errors import ConfigError

Submit = Callable[..., list[list[str]]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("submit", str(ROOT / "launch/submit"))
    module = module_from_spec(spec_from_loader("submit", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


@pytest.fixture
def submit(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    """The commands of a dry run, without `env`, its variables and `sbatch --parsable`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("KAIZEN_SETUP", raising=False)

    def run(*words: str) -> list[list[str]]:
        assert script.main([*words, "--dry-run"]) == 0
        return [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("env ")]

    return run


def test_a_run_is_one_job_and_its_table_a_second_one_afterwards(submit: Submit, tmp_path: Path) -> None:
    run, report = submit("digits", "--gpus", "a100:4", "--nodes", "2", "--partition", "gpu", "--run.dir", str(tmp_path))
    assert run[1:5] == [
        "KAIZEN_DEVICE=cuda",
        "KAIZEN_ACCELERATE=accelerate_configs/multi_node.yaml",
        "sbatch",
        "--parsable",
    ]
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=a100:4", "--partition=gpu"} <= set(run)
    assert run[-3:] == ["launch/train.sbatch", str(tmp_path), "digits"]
    assert "--dependency=afterany:JOB" in report
    assert report[-2:] == ["launch/report.sbatch", str(tmp_path)]


def test_on_the_cpu_no_gpu_is_asked_for(submit: Submit, tmp_path: Path) -> None:
    run, _ = submit("digits", "--cpu", "2", "--setup", "source a/b", "--time", "1-0", "--run.dir", str(tmp_path))
    assert {"KAIZEN_DEVICE=cpu", "KAIZEN_PER_NODE=2", "KAIZEN_SETUP=source a/b", "--time=1440"} <= set(run)
    assert not [word for word in run if "gpus" in word]


def test_jobs_on_the_same_directory_share_a_name_of_which_slurm_runs_one(submit: Submit, tmp_path: Path) -> None:
    def name(*words: str) -> str:
        run, report = submit(*words)
        assert "--dependency=singleton" in run
        (found,) = (word for word in run if word.startswith("--job-name="))
        assert found not in report
        return found

    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    one = name("digits", "--run.dir", str(tmp_path / "a"))
    assert one == name("digits", "--run.seed", "1", f"--run.dir={tmp_path}/link/../a")
    assert one != name("digits", "--run.dir", str(tmp_path / "b/a"))
    assert name("digits") != name("digits", "--run.seed", "1")


def test_all_arguments_reach_the_run(submit: Submit, tmp_path: Path) -> None:
    words = ["digits", "--preset", "cassle", "--optim.lr=0.5", "--views.crop_scale", "[0.5, 1]"]
    run, _ = submit(*words, "--jobs", "3", f"--run.dir={tmp_path}")
    assert run[-7:] == ["digits", "--preset", "cassle", "--optim.lr", "0.5", "--views.crop_scale", "[0.5, 1]"]


def test_an_array_holds_the_runs_of_a_sweep_that_are_not_done(submit: Submit, tmp_path: Path) -> None:
    file, runs = sweep_file(tmp_path, "digits --run.seed {0,1,2,3,4,5}"), tmp_path / "runs"
    words = ["--sweep", str(file), "--run.dir", str(runs), "--jobs", "2"]
    array, report = submit(*words)
    assert "--array=0-5%2" in array
    assert report[-1] == array[-1] == str(runs)
    for number in (1, 3, 4):
        found = read_sweep(file)[number]
        path = runs / found.name
        path.mkdir(parents=True)
        (path / "status.json").write_text('{"state": "done"}')
        (path / "results.json").write_text(json.dumps({"config_hash": found.config.hash()}))
    assert "--array=0,2,5%2" in submit(*words)[0]
    file.write_text("digits --run.seed {1,3,4}")
    assert submit(*words) == [], "all are done"
    assert not list(runs.glob("*.txt")), "a dry run writes nothing"


BAD = {
    "unknown key": (["digits", "--optim.learning", "1"], "optim.learning: is not a key"),
    "unknown option": (["digits", "--queue", "x"], "--queue: is not a key"),
    "too short": (["digits", "--time", "2"], "--time: is too short to save and go back into the queue"),
    "too short, seconds": (["digits", "--time", "0:1:59"], "--time: is too short"),
    "no time": (["digits", "--time", "soon"], "--time: is 'soon'; allowed: MINUTES"),
    "no gpu": (["digits", "--gpus", "0"], "--gpus: is '0'; allowed"),
    "both": (["digits", "--gpus", "1", "--cpu", "1"], "not allowed with argument --gpus"),
    "nodes": (["digits", "--nodes", "0"], "a number of at least 1"),
    "launch file": (["digits", "--accelerate", "none.yaml"], "--accelerate: is 'none.yaml'"),
    "sweep without directory": (["--sweep", "{sweep}"], "allowed with --sweep: only --run.dir DIR"),
    "sweep and recipe": (["--sweep", "{sweep}", "digits", "--run.dir", "x"], "allowed with --sweep"),
    "bad line": (["--sweep", "{bad}", "--run.dir", "x"], "line 2: optim.lr: is 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_before_anything_is_submitted(
    case: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words, said = BAD[case]
    bad = tmp_path / "bad.txt"
    bad.write_text("digits\ndigits --optim.lr x")
    words = [word.format(sweep=sweep_file(tmp_path, "digits"), bad=bad) for word in words]
    with pytest.raises(ConfigError, match=re.escape(said)):
        script.main([*words, "--dry-run"])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("2:30", 2.5), ("1:02:30", 62.5), ("1-0", 1440), ("2-03", 3060), ("1-01:30", 1530), ("0-0:3:30", 3.5)],
)
def test_time_limits_have_the_same_meaning_as_in_slurm(text: str, minutes: float, script: ModuleType) -> None:
    assert script._minutes(text) == minutes


def test_without_slurm_only_a_dry_run_is_possible(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="sbatch: is not installed"):
        script.main(["digits"])


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named sbatch that records its arguments."""
    fake = tmp_path / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s " "$@" >> {tmp_path}/said\necho >> {tmp_path}/said\necho "17;cluster"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.chdir(ROOT)
    return tmp_path / "said"


def test_data_are_prepared_and_each_run_is_checked_against_them_before_submission(
    script: ModuleType, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = shlex.join(["digits", *TINY, "--data.cache_dir", str(tmp_path / "cache")])
    bad = line.replace("--replay.per_class 4", "--replay.total 9")
    sweep = ["--sweep", str(sweep_file(tmp_path, line, bad)), "--run.dir", str(tmp_path / "runs")]
    with pytest.raises(ConfigError, match=r"replay\.total: is 9"):
        script.main(sweep)
    with pytest.raises(ConfigError, match=r"optim\.batch"):
        script.main([*shlex.split(line), "--gpus", "100", "--run.dir", str(tmp_path / "run")])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "77")
    with pytest.raises(ConfigError, match=r"two images in each of 77 parts"):
        script.main([*shlex.split(line), "--run.dir", str(tmp_path / "run")])
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    assert not slurm.exists()
    assert not list(tmp_path.glob("run*")), "nothing was written"
    sweep_file(tmp_path, line)
    assert script.main(sweep) == 0
    assert list((tmp_path / "cache").iterdir())
    array, report = slurm.read_text().splitlines()
    (copy,) = (tmp_path / "runs").glob("sweep-*.txt")
    assert copy.read_text() == line
    assert array.split()[-3:] == ["launch/array.sbatch", str(copy), str(tmp_path / "runs")]
    assert "--dependency=afterany:17 " in report
