"""Every default and every head follows the published definition of its method."""

from typing import Any

import pytest
import torch
from runs import settings_of

from kaizen.model.distillers import REGISTRY as DISTILLERS
from kaizen.model.methods import REGISTRY, method_class

TWIN = {"tau_base": 0.99, "tau_final": 1.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "simclr": {"projector_out": 128, "temperature": 0.1},
    "supcon": {"projector_out": 128, "temperature": 0.1},
    "mocov2plus": {**TWIN, "projector_out": 128, "temperature": 0.1, "queue_size": 65536, "tau_final": 0.999},
    "nnclr": {"projector_out": 256, "temperature": 0.2, "queue_size": 65536, "predictor_hidden": 4096},
    "byol": {**TWIN, "projector_hidden": 4096, "projector_out": 256, "predictor_hidden": 512},
    "simsiam": {"projector_out": 128, "predictor_hidden": 512},
    "barlow": {"projector_out": 2048, "off_diagonal": 0.005, "scale": 0.025},
    "vicreg": {"projector_out": 2048, "invariance": 25, "variance": 25, "covariance": 1},
    "wmse": {"projector_hidden": 1024, "projector_out": 64, "whitening_size": 128, "whitening_eps": 1e-3},
    "swav": {
        "projector_out": 128,
        "prototypes": 3000,
        "temperature": 0.1,
        "epsilon": 0.05,
        "iterations": 3,
        "queue_size": 3840,
        "queue_epoch": 15,
        "freeze_epochs": 1,
    },
    "deepclusterv2": {"projector_out": 128, "prototypes": 3000, "heads": 3, "temperature": 0.1, "iterations": 10},
    "dino": {
        **TWIN,
        "projector_out": 256,
        "prototypes": 4096,
        "temperature": 0.1,
        "teacher_temperature": (0.04, 0.07),
        "teacher_temperature_epochs": 50,
        "center_momentum": 0.9,
        "freeze_epochs": 1,
    },
    "osiris": {"projector_out": 128, "temperature": 0.1, "stability": "replay", "consolidation": 0.5},
    "ressl": {**TWIN, "projector_out": 256, "temperature": 0.1, "temperature_key": 0.04, "queue_size": 65536},
    "lejepa": {"projector_out": 128, "sigreg_weight": 0.05, "directions": 1024, "knots": 17, "extent": 3.0},
    "supervised": {"projector_hidden": 4096, "projector_out": 512},
}
PROJECTORS = {
    **dict.fromkeys(("simclr", "supcon", "mocov2plus", "ressl", "osiris"), "L R L"),
    **dict.fromkeys(("byol", "wmse", "swav", "deepclusterv2", "supervised"), "L B R L"),
    **dict.fromkeys(("barlow", "vicreg", "lejepa"), "L B R L B R L"),
    "nnclr": "L B R L B R L B",
    "simsiam": "l B R l B R l b",
    "dino": "L B G L B G L",
}
PREDICTORS = {"byol": "L B R L", "nnclr": "L B R L", "simsiam": "l B R L"}


def form(module: torch.nn.Module) -> str:
    """A head in letters: L linear (l without bias), B BatchNorm (b without scale and shift), R ReLU, G GELU."""
    letters = []
    for layer in module:  # type: ignore[attr-defined]
        letter = {"Linear": "L", "BatchNorm1d": "B", "ReLU": "R", "GELU": "G"}[type(layer).__name__]
        plain = (letter == "L" and layer.bias is None) or (letter == "B" and not layer.affine)
        letters.append(letter.lower() if plain else letter)
    return " ".join(letters)


@pytest.mark.parametrize("name", REGISTRY)
def test_defaults_and_heads_are_those_of_the_appendix(name: str) -> None:
    settings = method_class(name).Settings()
    own = settings.model_dump(exclude={"name", "weight"})
    assert own == {"projector_hidden": 2048, **DEFAULTS[name]}
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings
    method = method_class(name)(settings_of(name))
    assert form(method.build_projector(settings_of(name), 6)) == PROJECTORS[name]
    assert hasattr(method, "predictor") == (name in PREDICTORS)
    assert name not in PREDICTORS or form(method.predictor) == PREDICTORS[name]
    assert method.distiller in ("none", *DISTILLERS)
