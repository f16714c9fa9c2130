"""`python -m kaizen predict`: a table or JSON lines, whatever some of the files are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_sources import picture

import kaizen
from kaizen.commands import COMMANDS, predict, run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of images, and of other things."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "b/c").mkdir(parents=True)
    (folder / ".git").mkdir()
    for number, name in enumerate(("z.png", "b/y.jpg", "b/c/x.PNG", ".git/no.png", ".hidden.png")):
        picture(number, (12, 9)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_are_what_load_model_predicts(
    undisturbed: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--task", "2", str(undisturbed), str(images / "z.png"), "--json", "--top", "2", "--device", "cpu"]
    assert run(["predict", *given, str(images / "b"), "--reader", "statistics"], COMMANDS) == 0
    files = [images / "z.png", images / "b/y.jpg", images / "b/c/x.PNG"]
    expected = kaizen.load_model(undisturbed, 2, "statistics").predict(files, top=2)
    found = lines(capsys.readouterr().out)
    assert [line["file"] for line in found] == list(map(str, files))
    for line, row in zip(found, expected, strict=True):
        assert line["classes"] == [
            {"name": one.name, "probability": pytest.approx(one.probability, abs=1e-5)} for one in row
        ]


def test_a_directory_is_walked_and_the_table_names_every_image_in_it(
    undisturbed: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(undisturbed), str(images)], COMMANDS) == 0
    out = capsys.readouterr().out
    assert [name in out for name in ("z.png", "y.jpg", "x.PNG", "no.png", "hidden", "notes")] == [True] * 3 + [
        False
    ] * 3
    assert out.index("z.png") < out.index("y.jpg") < out.index("x.PNG")
    assert out.count(" %") == 9


def test_files_that_cannot_be_read_are_named_and_the_others_predicted(
    undisturbed: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 2)
    files = ["/no/such.png", images / "z.png", images / "notes.txt", images / "b/y.jpg", "/no/other.png"]
    assert run(["predict", str(undisturbed), *map(str, files), "--json"], COMMANDS) == 2
    out, err = capsys.readouterr()
    assert [line["file"] for line in lines(out)] == [str(images / "z.png"), str(images / "b/y.jpg")]
    assert err.splitlines() == [
        "error: /no/such.png: cannot be read (No such file or directory)",
        f"error: {images}/notes.txt: cannot be read (none of the image formats that Pillow reads, 8 bytes)",
        "error: /no/other.png: cannot be read (No such file or directory)",
        "error: FILE: 3 of 5 images cannot be read",
    ]


def test_a_file_that_is_given_twice_is_predicted_twice(
    undisturbed: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(undisturbed), *[str(images / "z.png")] * 2, "--json"], COMMANDS) == 0
    first, second = lines(capsys.readouterr().out)
    assert first == second


MISTAKES = {
    "nothing": ([], "arguments: the following arguments are required: RUN, FILE"),
    "no file": (["RUN"], "arguments: the following arguments are required: FILE"),
    "no run": (["/no/such", "IMAGE"], "RUN: is '/no/such', which contains neither a run"),
    "empty directory": (["RUN", "EMPTY"], "FILE: is '{EMPTY}', a directory without images"),
    "no task": (["RUN", "IMAGE", "--task", "7"], "task: is 7; allowed: 0 to 4"),
    "no reader": (["RUN", "IMAGE", "--reader", "knn"], "reader: is 'knn'; allowed for"),
    "no class": (["RUN", "IMAGE", "--top", "0"], "arguments: argument --top: is '0'; allowed: a number of at least 1"),
    "no device": (["RUN", "IMAGE", "--device", "abacus"], "--device: is 'abacus' ("),
    "no GPU": (["RUN", "IMAGE", "--device", "cuda:99"], "--device: is 'cuda:99' ("),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_with_code_2_and_one_line(
    case: str, undisturbed: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens, said = MISTAKES[case]
    places = {"RUN": str(undisturbed), "IMAGE": str(images / "z.png"), "EMPTY": str(tmp_path)}
    assert run(["predict", *(places.get(token, token) for token in tokens)], COMMANDS) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {said.format(**places)}")
    assert error.count("\n") == 1


def test_ctrl_c_ends_it_and_the_run_is_left_as_it_was(
    undisturbed: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    before = {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")}
    monkeypatch.setattr("kaizen.takeaway.model.Model.encode", interrupted)
    assert run(["predict", str(undisturbed), str(images)], COMMANDS) == 130
    assert {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")} == before
    assert "Traceback" not in capfd.readouterr().err


def test_an_exported_folder_is_a_run_too(
    undisturbed: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, image = tmp_path / "model", str(images / "z.png")
    assert run(["export", str(undisturbed), "--out", str(folder), "--no-onnx"], COMMANDS) == 0
    capsys.readouterr()
    outputs = []
    for place in (undisturbed, shutil.move(folder, tmp_path / "moved")):
        assert run(["predict", str(place), image, "--json"], COMMANDS) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
