"""Builds a model from a run directory or from an exported folder."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kaizen.errors import ConfigError
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.heads import mlp
from kaizen.run.places import user_path
from kaizen.run.tensors import load_into
from kaizen.takeaway.description import CONFIG, READERS, Held, classifier_sizes, read_export, read_run
from kaizen.takeaway.model import Model, Reading


def load_model(
    run_or_dir: str | os.PathLike[str], task: int = -1, reader: str = "classifier", *, trust_code: bool = False
) -> Model:
    """The model at the end of a task, on the CPU, from a run directory or from a folder that `export` wrote.

    Args:
        task: number of the task, from 0; -1: the last one that the run has finished.
        reader: what gives the probabilities: classifier, or statistics where the run keeps statistics of its classes.
        trust_code: whether the file of an encoder of your own, which the run names, may run.

    Raises:
        ConfigError: there is no such model, a file is missing or damaged, or code may not run.
    """
    place = user_path("RUN", os.fspath(run_or_dir))
    if (place / "config.yaml").is_file():
        held = read_run(place, task, trust_code)
    elif (place / CONFIG).is_file():
        held = read_export(place, task)
    else:
        problem = f"is '{place}', which contains neither a run (config.yaml) nor an exported model ({CONFIG})"
        raise ConfigError("RUN", f"{problem}; allowed: a run directory, or what `python -m kaizen export` wrote")
    return build(held, reader)


def build(held: Held, reader: str) -> Model:
    """The model of a description and its tensors.

    Raises:
        ConfigError: the tensors do not fit the description, or have no such reader.
    """
    about, tensors, source = held
    if reader not in READERS or reader not in about.taught:
        known = ", ".join(about.taught)
        kept = ", as statistics of its classes were not kept" if reader in READERS else ""
        raise ConfigError("reader", f"is {reader!r}; allowed for {source.parent}: {known}{kept}")
    sizes = classifier_sizes(tensors, source)
    outputs = sizes[-1]
    wrong = [label for labels in about.taught.values() for label in labels if not 0 <= label < outputs]
    if wrong or outputs != len(about.class_names):
        raise ConfigError(str(source), f"has {outputs} outputs, but {len(about.class_names)} classes are named")
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced: the caller's numbers stay as they were
        parts = nn.ModuleDict({"encoder": build_encoder(about.encoder, about.image_size), "classifier": mlp(sizes)})
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("statistics.")}
    load_into(parts, own, ("",), source)
    head = parts["classifier"] if reader == "classifier" else _layer(tensors, sizes[0], outputs, source)
    return Model(about, parts["encoder"], Reading(head, about.taught[reader], outputs))


def _layer(tensors: Mapping[str, Tensor], features: int, outputs: int, source: Path) -> nn.Linear:
    """The layer of the statistics as one over all outputs; rows of other classes are 0."""
    layer = nn.Linear(features, outputs).requires_grad_(False)
    try:
        classes = tensors["statistics.classes"]
        for name, parameter in (("weight", layer.weight), ("bias", layer.bias)):
            parameter.zero_()[classes] = tensors[f"statistics.{name}"].to(parameter.dtype)
    except (KeyError, IndexError, RuntimeError) as error:
        raise ConfigError(str(source), f"contains no layer of statistics that fits ({error})") from None
    return layer
