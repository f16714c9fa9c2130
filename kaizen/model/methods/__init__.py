"""SSL methods by name; a new method is one file here and one line in the registry.

A method's module is imported when it is asked for, so that a wrong key is reported without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kaizen.errors import ConfigError
from kaizen.plugins import installed, is_code, own_class, unknown

if TYPE_CHECKING:
    from kaizen.model.methods.base import Method

REGISTRY = {
    "simclr": "kaizen.model.methods.simclr:SimCLR",
    "supcon": "kaizen.model.methods.supcon:SupCon",
    "mocov2plus": "kaizen.model.methods.mocov2plus:MoCoV2Plus",
    "nnclr": "kaizen.model.methods.nnclr:NNCLR",
    "byol": "kaizen.model.methods.byol:BYOL",
    "simsiam": "kaizen.model.methods.simsiam:SimSiam",
    "barlow": "kaizen.model.methods.barlow:Barlow",
    "vicreg": "kaizen.model.methods.vicreg:VICReg",
    "wmse": "kaizen.model.methods.wmse:WMSE",
    "swav": "kaizen.model.methods.swav:SwAV",
    "deepclusterv2": "kaizen.model.methods.deepclusterv2:DeepClusterV2",
    "dino": "kaizen.model.methods.dino:DINO",
    "ressl": "kaizen.model.methods.ressl:ReSSL",
    "lejepa": "kaizen.model.methods.lejepa:LeJEPA",
    "supervised": "kaizen.model.methods.supervised:Supervised",
    "osiris": "kaizen.model.methods.osiris:Osiris",
}


def method_class(name: object) -> "type[Method]":
    """The class of the method of that name, ours or the user's own.

    Raises:
        ConfigError: no such method, or an own one that cannot be loaded.
    """
    if not isinstance(name, str) or name not in REGISTRY:
        if isinstance(name, str) and (is_code(name) or name in installed("method.name")):
            return own_class("method.name", name)
        raise ConfigError("method.name", unknown("method.name", name, REGISTRY))
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)
