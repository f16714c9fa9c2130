"""The card of an exported model: README.md with the data, the protocol, the accuracies and how to load the model."""

import json
import re
from collections.abc import Sequence
from typing import Any

from kaizen.evaluation.metrics import DEFINITIONS, PROTOCOLS
from kaizen.takeaway.description import Description
from kaizen.takeaway.snippets import snippets

SHOWN = 100
"""Names of classes on the card; config.json has all."""
STREAMS = {
    "class": "each task brought new classes",
    "data": "each task brought new images of any class",
    "domain": "each task brought images of a new domain",
    "joint": "it has all images",
}


def card(about: Description, licence: str, *, onnx: bool) -> str:
    """The text of README.md, with a head that the Hugging Face hub reads.

    Args:
        licence: identifier for the head, such as apache-2.0.
        onnx: whether the folder has model.onnx.
    """
    head = {"license": licence, "library_name": "kaizen", "pipeline_tag": "image-classification"}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items())]
    lines += ["tags: [kaizen, continual-learning, self-supervised-learning]", "---", ""]
    encoder = about.encoder
    lines += [
        f"# {encoder.name}, trained continually on {_plain(str(about.run['data']['source']))}",
        "",
        f"An encoder and a classifier for images of {about.image_size} x {about.image_size} pixels, trained with "
        "Kaizen on Accelerate (self-supervised continual learning with continual fine-tuning; Tang et al., WACV 2024, "
        "[arXiv 2303.17235](https://arxiv.org/abs/2303.17235)).",
        *_sides(about),
        "",
        *_data(about),
        *_protocol(about),
        *_accuracies(about),
        *_files(about, onnx=onnx),
        *snippets(about, onnx=onnx),
        "## Licence",
        "",
        f"Of these weights: {licence}. The images that they were trained on have terms of their own. The software is "
        "under Apache-2.0.",
    ]
    return "\n".join(lines) + "\n"


def _sides(about: Description) -> list[str]:
    said = f"Of an image the shorter side is resized to {about.resize} pixels (bicubic, antialiased), the centre kept."
    return [] if about.resize is None else [said]


def _data(about: Description) -> list[str]:
    data, names = about.run["data"], about.class_names
    unknown = len(names) - len(about.taught["classifier"])
    told = ", ".join(_plain(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    lines = ["## Data", "", f"Source `{_plain(str(data['source']))}`, SHA-256 of images and labels `{data['digest']}`."]
    lines += [
        f"From task {part['first_task']} on `{_plain(str(part['source']))}`, SHA-256 `{part['digest']}`."
        for part in about.run.get("extensions", [])
    ]
    lines += [f"{len(names)} classes: {told}."]
    if unknown:
        lines += [f"The classifier was taught {len(names) - unknown} of them; the others get no probability."]
    mean, std = ([round(value, 4) for value in values] for values in (about.mean, about.std))
    lines += [f"Pixels are RGB levels 0..1, minus the mean {mean}, over the deviation {std}."]
    return [*lines, ""]


def _protocol(about: Description) -> list[str]:
    run, stream = about.run, about.run["stream"]
    tasks = stream["tasks"]
    lines = ["## How it was trained", ""]
    kind = STREAMS.get(stream["kind"], stream["kind"])
    count = "one task" if len(tasks) == 1 else f"{len(tasks)} tasks"
    later = about.run.get("extensions", [])
    kind += f"; data that came later, from task {later[0]['first_task']} on" if later else ""
    told = [f"Stream of {count}: {kind}. This is the network at the end of task {about.task}."]
    if len(tasks) > 1:
        told += ["Images of earlier tasks were no longer available, except for a replay memory:"]
        told += [f"{_told(run['replay'])}."]
    lines += [
        " ".join(told),
        f"Method: {_told(run['method'])}. Distillation of the old encoder: {_told(run['distill'])}. Labels: "
        f"{_told(run['labels'])}. Optimizer: {_told(run['optim'])}{', of the first data' * bool(later)}. "
        f"Seed: {run['seed']}. Recipe `{run['recipe']}`"
        + (f", preset `{run['preset']}`" if run["preset"] else "")
        + f", configuration `{run['config_hash']}`.",
        "",
        "| task | classes | training images | test images |",
        "|---|---|---|---|",
    ]
    for number, task in enumerate(tasks[: about.task + 1]):
        cells = (number, _plain(task["name"]), task["train_images"], task["test_images"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def _accuracies(about: Description) -> list[str]:
    """Accuracies of every reader on each task's test images, the metrics, and what they mean."""
    lines = ["## Accuracies", ""]
    if not about.accuracies:
        return [*lines, "They were not measured.", ""]
    lines += [
        "In %, on the test images of each task. No reader is told the task; `-`: it was not taught these classes.",
        "",
    ]
    names = [f"task {number}" for number in range(len(about.run["stream"]["tasks"]))]
    lines += [_row(["reader", *names]), _row(["---"] * (len(names) + 1))]
    lines += [_row([name, *map(_percent, held["by_task"])]) for name, held in about.accuracies.items()]
    metrics = [metric for metric in DEFINITIONS if any(metric in held for held in about.accuracies.values())]
    if metrics:
        lines += ["", _row(["reader", *(metric.replace("_", " ") for metric in metrics)])]
        lines += [_row(["---"] * (len(metrics) + 1))]
        for name, held in about.accuracies.items():
            lines.append(_row([name, *(_percent(held.get(metric)) for metric in metrics)]))
    lines += ["", "A[t][i] is the accuracy on task i after task t, of tasks 0 to T-1.", ""]
    lines += [f"- {metric.replace('_', ' ')}: {DEFINITIONS[metric]}" for metric in metrics]
    lines += [f"- reader {name}: {held['protocol'] or PROTOCOLS.get(name)}" for name, held in about.accuracies.items()]
    return [*lines, ""]


def _files(about: Description, *, onnx: bool) -> list[str]:
    lines = ["## Files", "", "| file | content |", "|---|---|"]
    lines += ["| `model.safetensors` | tensors of encoder, classifier and, where kept, the layer of the statistics |"]
    lines += ["| `encoder.safetensors` | the encoder alone, with the names that its library gives them |"]
    if onnx:
        lines += ["| `model.onnx` | the whole model, for uint8 images |"]
    return [*lines, "| `config.json` | architecture, normalisation, class names, origin and accuracies |", ""]


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _told(settings: dict[str, Any]) -> str:
    """Settings in words, as `random, per class 10`."""
    said = [
        _plain(str(value)) if key in ("name", "policy") else f"{key.replace('_', ' ')} {value}"
        for key, value in settings.items()
        if value is not None
    ]
    return ", ".join(said) or "none"


def _plain(text: str) -> str:
    """Text from the data that cannot change the layout of the card."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", re.sub(r"\s+", " ", text))
