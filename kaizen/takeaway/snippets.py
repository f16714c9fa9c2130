"""Lines of Python on a model's card that load it, with this package and with the libraries that its encoder is from."""

from typing import Any

from kaizen.config.encoder import TIMM as KIND
from kaizen.model.networks.fit import kind_of
from kaizen.takeaway.description import Description
from kaizen.takeaway.graph import outputs

WIDTH = 64
"""Channels of the first stage of torchvision's ResNets."""
RESNETS, VITS = ("resnet18", "resnet34", "resnet50"), ("vit_tiny", "vit_small", "vit_base")
FIRST = """import kaizen

model = kaizen.load_model(".")                  # this folder{reader}
print(model.predict("image.png", top=3))        # class names with probabilities, best first
features = model.features(["image.png"])        # a tensor (1, {dim})"""
TORCHVISION = """import torch
import torchvision
from safetensors.torch import load_file

encoder = torchvision.models.{name}({arguments})
{stem}encoder.fc = torch.nn.Identity()
encoder.load_state_dict(load_file("encoder.safetensors"), strict=True)
encoder.eval()                                  # normalised images (n, 3, h, w) -> features (n, {dim})"""
STEM = """encoder.conv1 = torch.nn.Conv2d(3, 64, 3, stride=1, padding={padding}, bias=False)
encoder.maxpool = torch.nn.Identity()
"""
TIMM = """import timm
from safetensors.torch import load_file

encoder = timm.create_model("{name}", num_classes=0{arguments})
encoder.load_state_dict(load_file("encoder.safetensors"), strict=True)
encoder.eval()                                  # normalised images (n, 3, {size}, {size}) -> features (n, {dim})"""
GRAPH = """import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
image = Image.open("image.png").convert("RGB"){prepared}
images = np.asarray(image).transpose(2, 0, 1)[None]     # uint8 (n, 3, {size}, {size}); the graph normalises
{run}"""
RUN = """features, probabilities = session.run(["features", "{probabilities}"], {{"images": images}})
names = json.load(open("config.json", encoding="utf-8"))["class_names"]
print(names[probabilities[0].argmax()])"""
FEATURES = """(features,) = session.run(["features"], {"images": images})"""


def snippets(about: Description, *, onnx: bool) -> list[str]:
    """Sections of the card, each with one block of Python that runs in the folder."""
    encoder = about.encoder
    reader = '; or with reader="statistics"' if about.taught.get("statistics") else ""
    found = _section("With kaizen", "", FIRST.format(dim=about.features, reader=reader))
    if encoder.name in VITS:
        found += _timm(
            about, f"{encoder.name}_patch16_224", {"img_size": about.image_size, "patch_size": encoder.patch}
        )
    elif kind_of(encoder.name) == "timm":
        from kaizen.model.networks.timm_encoder import creation_arguments

        arguments = creation_arguments(encoder.name, about.image_size)
        found += _timm(about, encoder.name.removeprefix(KIND), arguments)
    elif encoder.name in RESNETS and encoder.width == WIDTH:
        found += _torchvision(about)
    elif encoder.name in RESNETS:
        found += [f"torchvision has no {encoder.name} of width {encoder.width}, so it cannot load this encoder.", ""]
    if onnx:
        named = outputs(about)
        said = f"Input: `images`. Outputs: {', '.join(f'`{name}`' for name in named)}, in the order of class_names. "
        run = RUN.format(probabilities=named[1]) if named[1:] else FEATURES
        if about.resize is None:
            said += "Images that are not square: resize the shorter side, then crop the centre."
        code = GRAPH.format(size=about.image_size, prepared=_prepared(about), run=run)
        found += _section("With onnxruntime", said, code)
    return found


def _prepared(about: Description) -> str:
    """Code that makes an image as large as the encoder was evaluated with."""
    size = about.image_size
    if about.resize is None:
        return f".resize(({size}, {size}), Image.Resampling.BICUBIC)"
    return f"""
scale = {about.resize} / min(image.size)                             # the shorter side becomes {about.resize} pixels
image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
left, top = ((side - {size}) // 2 for side in image.size)      # and the centre is kept
image = image.crop((left, top, left + {size}, top + {size}))"""


def _timm(about: Description, name: str, arguments: dict[str, Any]) -> list[str]:
    given = "".join(f", {key}={value}" for key, value in arguments.items())
    code = TIMM.format(name=name, arguments=given, size=about.image_size, dim=about.features)
    return _section("With timm", "", code)


def _torchvision(about: Description) -> list[str]:
    encoder, said, stem = about.encoder, "", ""
    if encoder.stem == "cifar":
        said = (
            "It begins as networks for small images do: `conv1` is 3 x 3 instead of torchvision's 7 x 7, and there is "
        )
        said += "no max-pooling. All other parameters are torchvision's."
        stem = STEM.format(padding=encoder.stem_padding)
    arguments = ""
    if encoder.norm == "group":
        arguments = "norm_layer=lambda channels: torch.nn.GroupNorm(min(32, channels // 4), channels)"
    code = TORCHVISION.format(name=encoder.name, arguments=arguments, stem=stem, dim=about.features)
    return _section("With torchvision", said, code)


def _section(title: str, said: str, code: str) -> list[str]:
    return [f"## {title}", "", *([said, ""] if said else []), "```python", code, "```", ""]
