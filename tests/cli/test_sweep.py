"""Sweep files: the runs that a line describes, their names, and errors."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launches import ROOT
from runs import sweep_file

from kaizen.cli.sweep import expand, read_sweep, split_line
from kaizen.commands import COMMANDS, run
from kaizen.errors import ConfigError


def names_of(tmp_path: Path, *lines: str) -> list[str]:
    return [found.name for found in read_sweep(sweep_file(tmp_path, *lines))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  # don't", []),
        ("digits # it's a comment", ["digits"]),
        ("digits --log.name 'a # b' # c", ["digits", "--log.name", "a # b"]),
        ("a#b --optim.lr=1#2", ["a#b", "--optim.lr=1#2"]),
        ("--classifier.hidden [16]", ["--classifier.hidden", "[16]"]),
    ],
)
def test_a_line_is_split_as_a_shell_does_and_comments_begin_a_word(line: str, words: list[str]) -> None:
    assert split_line(line) == words


def test_lists_in_braces_give_every_combination_the_last_fastest() -> None:
    assert expand(["a-{x,y}", "--k", "{1,2}"]) == [
        *(("a-x", "--k", "1"), ("a-x", "--k", "2"), ("a-y", "--k", "1"), ("a-y", "--k", "2"))
    ]
    assert expand(["{[],[16,8]}"]) == [("[]",), ("[16,8]",)], "commas in brackets belong to the value"
    assert expand(["{a,b}/{c,d}"]) == [("a/c",), ("a/d",), ("b/c",), ("b/d",)]
    assert expand(["{ 0, 1 }"]) == [("0",), ("1",)]
    assert expand([]) == []


@given(st.lists(st.lists(st.text("ab1.=[]", min_size=1), min_size=1, max_size=3), max_size=3))
def test_as_many_runs_as_the_product_of_the_lists(lists: list[list[str]]) -> None:
    lists = [[word.replace("[", "").replace("]", "") or "0" for word in words] for words in lists]
    found = expand(["digits", *("{" + ",".join(words) + "}" for words in lists)])
    count = 1
    for words in lists:
        count *= len(words)
    assert len(found) == count
    assert found[0] == ("digits", *(words[0] for words in lists))


@pytest.mark.parametrize(("file", "runs"), [("digits", 141), ("fashion", 39), ("fashion-ablation", 60)])
def test_shipped_sweeps_are_what_the_results_say(file: str, runs: int) -> None:
    found = read_sweep(ROOT / "launch" / "sweeps" / f"{file}.txt")
    assert len({run.name for run in found}) == runs
    assert f"launch/sweeps/{file}.txt" in (ROOT / "kaizen/recipes/RESULTS.md").read_text()


@pytest.mark.parametrize("word", ["{0,", "1}", "{a,}", "{}", "{a,{b}", "x}{y"])
def test_braces_that_are_no_list_are_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        expand(["digits", word])


def test_names_tell_recipe_preset_overrides_and_seed(tmp_path: Path) -> None:
    lines = ["digits", "digits --run.seed {1,2} --preset cassle", "digits --optim.lr 0.1 --distill.weight=2"]
    assert names_of(tmp_path, *lines) == [
        *("digits-seed0", "digits-cassle-seed1", "digits-cassle-seed2"),
        "digits-distill.weight=2-optim.lr=0.1-seed0",
    ]
    free = "digits --log.every_steps 3 --run.checkpoint_every 7 --data.cache_dir /x"
    assert names_of(tmp_path, free) == ["digits-seed0"], "keys that do not affect the result are not in the name"


def test_names_that_had_to_be_changed_hold_a_hash_which_tells_them_apart(tmp_path: Path) -> None:
    first, second = names_of(tmp_path, "digits --classifier.hidden {[16],16.}".replace("16.", "[16,16]"))
    assert first != second
    one, two = names_of(tmp_path, "digits --classifier.hidden [16] --run.seed {0,1}")
    assert one == first
    assert one.removesuffix("-seed0") == two.removesuffix("-seed1"), "all seeds have the same hash"
    for name in (first, second):
        assert "/" not in name
        assert "[" not in name
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder, rate in (("a", 1), ("b", 2)):
        (tmp_path / folder / "mine.yaml").write_text(f"optim: {{lr: {rate}}}")
    mine = names_of(tmp_path, f"{tmp_path}/{{a,b}}/mine.yaml")
    assert len(set(mine)) == 2
    assert all(name.startswith("mine-") for name in mine)
    sources = names_of(tmp_path, "digits --data.source parquet:{/x/y,/x:y}")
    assert len(set(sources)) == 2, "two places of data are two runs"
    long = names_of(tmp_path, f"digits --data.train_split {'x' * 400}")[0]
    assert len(long) < 150


def test_a_name_does_not_depend_on_the_other_lines(tmp_path: Path) -> None:
    line = "digits --views.crop_scale [0.5,1] --preset replay"
    alone, among = names_of(tmp_path, line), names_of(tmp_path, "digits", line, "digits --run.seed 4")
    assert alone[0] == among[1]


BAD = {
    "unknown key": ("digits --optim.learning 1", 3, "optim.learning: is not a key"),
    "wrong value in a list": ("digits --optim.lr {1,x}", 3, "optim.lr: is 'x'"),
    "unknown preset": ("digits --preset casle", 3, "--preset: is 'casle'"),
    "unknown recipe": ("digitz", 3, "RECIPE: is 'digitz'"),
    "quotation": ("digits --log.name 'a", 3, "line: cannot be split"),
    "brace": ("digits --run.seed {0, 1}", 3, "{0,: has an unmatched brace"),
    "directory": ("digits --run.dir x", 3, "run.dir: is set by the sweep"),
    "resume": ("digits --run.resume never", 3, "run.resume: is set by the sweep"),
    "same run": ("digits --log.every_steps 2", 3, "digits-seed0: is the same run as digits-seed0 of line 2"),
    "same run, other words": ("digits --replay.batch 64", 3, "is the same run as digits-seed0 of line 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_ends_with_code_2_and_its_number_before_anything_runs(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, number, said = BAD[case]
    file = sweep_file(tmp_path, "# first", "digits", line)
    assert run(["sweep", str(file), "--run.dir", str(tmp_path / "runs")], COMMANDS) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}, line {number}: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["no/such/file", "--run.dir", "x"], "FILE"),
        (["{empty}", "--run.dir", "x"], "contains no run"),
        (["{file}"], "--run.dir"),
        (["{file}", "--run.dir", "x", "--jobs", "0"], "--jobs"),
        (["{file}", "--run.dir", "x", "--jobs", "two"], "a number of at least 1"),
        (["{file}", "--run.dir", "x", "--launcher", "no-such-program -q"], "no-such-program"),
        (["{file}", "--run.dir", "{file}/x"], "--run.dir"),
        (["{file}", "--run.dir", "x", "--optim.lr", "1"], "--optim.lr"),
        (["{file}", "--run.dir", "x", "--only", "1"], "--only: is 1; allowed: 0 to 0"),
        (["{file}", "--run.dir", "x", "--list", "--only", "-1"], "--only: is -1; allowed: 0 to 0"),
    ],
)
def test_wrong_arguments_end_with_code_2_and_one_line(
    tokens: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("# nothing\n\n")
    paths = {"file": str(sweep_file(tmp_path, "digits")), "empty": str(tmp_path / "empty")}
    assert run(["sweep", *(token.format(**paths) for token in tokens)], COMMANDS) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_list_tells_number_directory_and_command_of_each_run_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, "# two", "digits --run.seed {0,1} --views.crop_scale '[0.5, 1]'")
    sweep = ["sweep", str(file), "--run.dir", str(tmp_path / "runs"), "--list"]
    assert run(sweep, COMMANDS) == 0
    lines = capsys.readouterr().out.splitlines()
    for number, (line, found) in enumerate(zip(lines, read_sweep(file), strict=True)):
        index, directory, command = line.split("\t")
        assert (int(index), directory) == (number, str(tmp_path / "runs" / found.name))
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "kaizen.commands.train"]
        assert words[3:] == [*found.tokens, "--run.dir", directory]
    assert run([*sweep, "--only", "1"], COMMANDS) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]
    assert run([*sweep, "--launcher", "env A=1 python"], COMMANDS) == 0
    assert "\tenv A=1 python -m kaizen.commands.train digits" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_help_explains_lists_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "--help"], COMMANDS) == 0
    out = capsys.readouterr().out
    for said in ("--run.dir DIR", "--jobs N", "--launcher", "{a,b,c}", "75 stopped", "KAIZEN_THREADS"):
        assert said in out
