"""SSL methods by name; a new method is one file here and one line in the registry.

A method's module is imported when it is asked for, so that a wrong key is reported without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kaizen.errors import ConfigError

if TYPE_CHECKING:
    from kaizen.methods.base import Method

REGISTRY = {
    "simclr": "kaizen.methods.simclr:SimCLR",
    "supcon": "kaizen.methods.supcon:SupCon",
    "mocov2plus": "kaizen.methods.mocov2plus:MoCoV2Plus",
    "nnclr": "kaizen.methods.nnclr:NNCLR",
    "byol": "kaizen.methods.byol:BYOL",
    "simsiam": "kaizen.methods.simsiam:SimSiam",
    "barlow": "kaizen.methods.barlow:Barlow",
    "vicreg": "kaizen.methods.vicreg:VICReg",
    "wmse": "kaizen.methods.wmse:WMSE",
    "swav": "kaizen.methods.swav:SwAV",
    "deepclusterv2": "kaizen.methods.deepclusterv2:DeepClusterV2",
    "dino": "kaizen.methods.dino:DINO",
    "ressl": "kaizen.methods.ressl:ReSSL",
}


def method_class(name: object) -> "type[Method]":
    """The class of the method of that name.

    Raises:
        ConfigError: no such method.
    """
    if not isinstance(name, str) or name not in REGISTRY:
        raise ConfigError("method.name", f"is {name!r}; allowed: {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)
