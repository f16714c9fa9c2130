"""`python -m kaizen report`: the runs that it finds, the files that it writes, its errors."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from kaizen.commands import COMMANDS, run
from kaizen.evaluation.metrics import DEFINITIONS


@pytest.fixture
def runs(undisturbed: Path, tmp_path: Path) -> Path:
    """Three run directories that differ only in the seed, and a run that has just begun."""
    for seed in range(3):
        path = tmp_path / f"runs/deeper/seed{seed}"
        path.mkdir(parents=True)
        text = (undisturbed / "config.yaml").read_text()
        assert "seed: 0," in text
        (path / "config.yaml").write_text(text.replace("seed: 0,", f"seed: {seed},", 1))
        results = json.loads((undisturbed / "results.json").read_text())
        results["readers"]["classifier"]["final_accuracy"] = 0.5 + 0.1 * seed
        (path / "results.json").write_text(json.dumps(results))
        (path / "wandb").mkdir()
        (path / "wandb/config.yaml").write_text("x: 1")
        (path / "wandb/status.json").write_text("{}")
    begun = tmp_path / "runs/begun"
    begun.mkdir()
    text = (
        (undisturbed / "config.yaml").read_text().replace("# recipe: digits\n", "# recipe: digits\n# preset: replay\n")
    )
    (begun / "config.yaml").write_text(text.replace("policy: random", "policy: first"))
    (begun / "status.json").write_text("{}")
    return tmp_path / "runs"


def test_the_command_finds_runs_prints_and_writes_them(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(runs), "--out", str(tmp_path / "out/deep"), "--baseline", "digits"], COMMANDS) == 0
    out = capsys.readouterr().out
    assert "60.0 ± 10.0 (3)" in out
    assert all(definition in out for definition in DEFINITIONS.values())
    text = (tmp_path / "out/deep/report.md").read_text()
    assert "| digits | 60.0 ± 10.0 (3) |" in text
    assert "| digits-replay |  |" in text
    held = list(csv.DictReader((tmp_path / "out/deep/report.csv").open()))
    assert [line["mean"] for line in held if line["group"] == "digits-replay"] == [""] * (len(DEFINITIONS) + 1)
    found = next(line for line in held if line["group"] == "digits" and line["metric"] == "final_accuracy")
    assert float(found["mean"]) == pytest.approx(0.6)
    assert not (runs / "report").exists()


def test_a_group_without_a_baseline_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(runs), "--baseline", "replay"], COMMANDS) == 0
    assert "note" not in capsys.readouterr().out
    (runs / "begun/environment.json").write_text(json.dumps({"data": "1" * 64}))
    assert run(["report", str(runs), "--baseline", "replay"], COMMANDS) == 0
    assert "note: digits data=null has no baseline: " in capsys.readouterr().out


def test_without_out_the_report_of_one_run_lies_in_it_and_of_several_nowhere(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = str(runs / "deeper/seed0"), str(runs / "deeper/seed1")
    assert run(["report", one, two, one], COMMANDS) == 0
    out = capsys.readouterr().out
    assert "55.0 ± 7.1 (2)" in out
    assert "note" not in out, "a run given twice is one run"
    assert not list(runs.rglob("report.md"))
    assert run(["report", one], COMMANDS) == 0
    assert (runs / "deeper/seed0/report/report.csv").is_file()


def test_a_seed_that_is_repeated_is_left_out_with_a_note(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "deeper/seed1", runs / "deeper/seed9")
    assert run(["report", str(runs)], COMMANDS) == 0
    out = capsys.readouterr().out
    assert f"note: {runs / 'deeper/seed9'} repeats a seed of digits and is left out" in out
    assert "60.0 ± 10.0 (3)" in out


def test_a_finished_run_of_ours_is_reported_as_its_results_say(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(undisturbed), "--out", str(tmp_path)], COMMANDS) == 0
    results = json.loads((undisturbed / "results.json").read_text())
    reader, memory = results["readers"]["classifier"], sum(part[-1] for part in results["memory_bytes"].values())
    for line in csv.DictReader((tmp_path / "report.csv").open()):
        value = float(memory) if line["metric"] == "memory_bytes" else reader[line["metric"]]
        assert (line["group"], line["std"]) == ("digits", "")
        assert (line["n"], line["mean"]) == (("0", "") if value is None else ("1", str(value)))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "RUN"),
        (["{tmp}/none"], "RUN: '{tmp}/none' is not a run directory and contains none"),
        (["{tmp}"], "RUN: '{tmp}' is not a run directory and contains none"),
        (["{run}", "--baseline", "kaizn"], "--baseline: is 'kaizn'; allowed: 'digits'"),
        (["{run}", "--out", "/proc/none"], "--out: /proc/none cannot be written"),
        (["{run}", "--optim.lr", "3"], "--optim.lr"),
    ],
)
def test_wrong_arguments_end_with_code_2_and_one_line(
    tokens: list[str], said: str, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tmp": str(tmp_path), "run": str(undisturbed)}
    assert run(["report", *(token.format(**places) for token in tokens)], COMMANDS) == 2
    error = capsys.readouterr().err
    assert said.format(**places) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "[1"),
        ("config.yaml", "run: {seed: x}"),
        ("config.yaml", "optim: {lr: 1}"),
        ("results.json", "{"),
        ("results.json", "[]"),
        ("results.json", '{"recipe": "digits"}'),
        ("results.json", '{"recipe": "digits", "readers": {"classifier": 3}}'),
    ],
)
def test_files_that_are_damaged_are_named(
    file: str, content: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = runs / "deeper/seed1" / file
    damaged.write_text(content)
    assert run(["report", str(runs)], COMMANDS) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {damaged}: cannot be read")
    assert error.count("\n") == 1


def test_help_tells_what_a_group_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "--help"], COMMANDS) == 0
    out = capsys.readouterr().out
    for said in ("--out DIR", "--baseline GROUP", "run.seed", "ddof 1", "report.csv"):
        assert said in out
