"""`kaizen.load_model` on a run: what the evaluation measured, for images in any form."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kaizen
from kaizen.cli.resolve import resolve
from kaizen.data.load import Stream, load_stream
from kaizen.errors import ConfigError
from kaizen.evaluation.features import extract_features
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel
from kaizen.run.checkpoint import write_directory


@pytest.fixture(scope="module")
def tested(undisturbed: Path) -> Stream:
    """The data of the run."""
    return load_stream(resolve(str(undisturbed / "config.yaml"), {})[1])


@pytest.fixture(scope="module")
def files(tested: Stream, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Its test images by task, as PNG files."""
    folder, found = tmp_path_factory.mktemp("images"), []
    for number in np.concatenate([task.test for task in tested.tasks]):
        found.append(folder / f"{number}.png")
        Image.fromarray(tested.source.test.images[number].transpose(1, 2, 0)).save(found[-1])
    return found


@pytest.mark.parametrize("task", [0, 4])
def test_features_are_bit_for_bit_those_of_the_evaluation(
    task: int, undisturbed: Path, tested: Stream, files: list[Path], accelerate_anew: None
) -> None:
    parallel, config = Parallel(), resolve(str(undisturbed / "config.yaml"), {})[1]
    snapshot = undisturbed / f"tasks/task-{task:02d}/student.safetensors"
    network = read_network(snapshot, config)
    tests = np.concatenate([part.test for part in tested.tasks])
    expected = extract_features(network.encoder, [(tested.source.test.images, tests)], tested.moments, parallel)
    model = kaizen.load_model(undisturbed, task)
    assert torch.equal(model.features(files), expected)
    assert not model.encoder.training


@pytest.mark.parametrize("reader", ["classifier", "statistics"])
def test_predictions_have_the_accuracy_that_the_evaluation_measured(
    reader: str, undisturbed: Path, tested: Stream, files: list[Path]
) -> None:
    model = kaizen.load_model(undisturbed, reader=reader)
    found = [row[0].name for row in model.predict(files, top=1)]
    truth = [model.class_names[tested.source.test.labels[int(file.stem)]] for file in files]
    right = [a == b for a, b in zip(found, truth, strict=True)]
    if reader == "classifier":
        row = json.loads((undisturbed / "results.json").read_text())["readers"]["classifier"]["matrix"][-1]
        ends = np.cumsum([len(task.test) for task in tested.tasks])[:-1]
        assert [float(np.mean(part)) for part in np.split(right, ends)] == row
    else:
        assert np.mean(right) > 0.3


def test_one_image_in_any_form_gives_the_same(undisturbed: Path, files: list[Path]) -> None:
    model = kaizen.load_model(str(undisturbed))
    image = Image.open(files[0])
    levels = np.asarray(image)
    tensor = torch.tensor(levels).permute(2, 0, 1)
    forms = [files[0], str(files[0]), image, levels, tensor, tensor / 255, [files[0]], tensor[None], iter([image])]
    predictions = [model.predict(form) for form in forms]
    assert all(found == predictions[0] for found in predictions)
    assert len(predictions[0]) == 1
    best = predictions[0][0]
    assert sum(one.probability for one in best) == pytest.approx(1)
    assert [one.probability for one in best] == sorted((one.probability for one in best), reverse=True)
    assert {one.name for one in best} == set(model.class_names) == set("0123456789")
    assert model.features(image).shape == (1, model.description.features)
    assert model.features([]).shape == (0, model.description.features)
    assert model.predict([]) == []


@pytest.mark.parametrize("reader", ["classifier", "statistics"])
def test_classes_that_were_not_taught_yet_get_no_probability(
    reader: str, undisturbed: Path, tested: Stream, files: list[Path]
) -> None:
    model = kaizen.load_model(undisturbed, 1, reader)
    taught = {model.class_names[number] for task in tested.tasks[:2] for number in task.classes}
    assert len(taught) == 4
    for row in model.predict(files[:5]):
        assert {one.name for one in row} == taught == set(model.taught)
        assert sum(one.probability for one in row) == pytest.approx(1)
    assert len(model.class_names) == 10


def altered(run: Path, place: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a run with something changed."""
    shutil.copytree(run, place)
    change(place)
    return place


def test_an_earlier_task_may_have_fewer_outputs_than_there_are_names(undisturbed: Path, tmp_path: Path) -> None:
    def cut(run: Path) -> None:
        from kaizen.run.checkpoint import read_state
        from kaizen.run.tensors import read_tensors

        folder = run / "tasks/task-00"
        held = {name: read_tensors(folder / f"{name}.safetensors") for name in ("student", "method", "replay")}
        for part in ("weight", "bias"):
            held["student"][f"classifier.2.{part}"] = held["student"][f"classifier.2.{part}"][:7].clone()
        state = read_state(folder)
        state.pop("files")
        write_directory(folder, held, state)

    model = kaizen.load_model(altered(undisturbed, tmp_path / "run", cut), 0)
    assert model.class_names == list("0123456")
    assert model.taught == ["1", "4"]


def test_a_run_without_labels_has_features_and_refuses_to_guess(undisturbed: Path, tmp_path: Path) -> None:
    def hide(run: Path) -> None:
        file = run / "config.yaml"
        file.write_text(file.read_text().replace("fraction: 1.0", "fraction: 0.0"))

    model = kaizen.load_model(altered(undisturbed, tmp_path / "run", hide))
    image = np.zeros((8, 8), np.uint8)
    assert model.features(image).shape[0] == 1
    with pytest.raises(ConfigError, match="reader: was taught no class"):
        model.predict(image)


MISTAKES = {
    "no run": (lambda run: shutil.rmtree(run), {}, "RUN: is '{run}', which contains neither a run"),
    "no results": (
        lambda run: (run / "results.json").unlink(),
        {},
        "{run}/results.json: is missing, and only it has the classes' names and the normalisation; `python -m kaizen",
    ),
    "half results": (lambda run: (run / "results.json").write_text("{"), {}, "{run}/results.json: cannot be read"),
    "other results": (
        lambda run: (run / "results.json").write_text('{"schema": 2, "readers": {}}'),
        {},
        "{run}/results.json: does not fit the run",
    ),
    "no task": (lambda run: shutil.rmtree(run / "tasks"), {}, "RUN: is '{run}', which has finished no task yet"),
    "damage": (
        lambda run: (run / "tasks/task-04/student.safetensors").write_bytes(b"damaged"),
        {},
        "{run}/tasks/task-04/student.safetensors: is damaged",
    ),
    "task": (lambda run: None, {"task": 5}, "task: is 5; allowed: 0 to 4, or -1 for the last"),
    "before": (lambda run: None, {"task": -2}, "task: is -2; allowed: 0 to 4, or -1 for the last"),
    "reader": (lambda run: None, {"reader": "knn"}, "reader: is 'knn'; allowed"),
    "no statistics": (
        lambda run: (run / "tasks/task-04/statistics.safetensors").unlink(),
        {"reader": "statistics"},
        "{run}/tasks/task-04/statistics.safetensors: is listed in state.json but missing",
    ),
    "encoder": (
        lambda run: (run / "config.yaml").write_text(
            (run / "config.yaml").read_text().replace("name: resnet18", "name: resnet19")
        ),
        {},
        "{run}/config.yaml: cannot be used: name: Value error, is ",
    ),
    "no configuration": (lambda run: (run / "config.yaml").write_text("a: 1"), {}, "{run}/config.yaml: cannot be read"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_file_or_the_key(case: str, undisturbed: Path, tmp_path: Path) -> None:
    change, given, said = MISTAKES[case]
    run = altered(undisturbed, tmp_path / "run", change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        kaizen.load_model(run, **given)  # type: ignore[arg-type]
    assert str(caught.value).startswith(said.format(run=run))
    assert "\n" not in str(caught.value)


def test_loading_leaves_the_callers_random_numbers_alone(undisturbed: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    kaizen.load_model(undisturbed)
    assert torch.equal(torch.rand(4), expected)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import sys, kaizen; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    code += "; assert not hasattr(kaizen, 'no_such_name')"
    environment = {**os.environ, "PYTHONPATH": str(Path(kaizen.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
