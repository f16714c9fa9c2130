"""Pretrained weights of others: where they are, and how their names and shapes become those of our encoders."""

import re
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kaizen.config.encoder import TIMM, EncoderConfig
from kaizen.config.types import AUTO
from kaizen.errors import ConfigError
from kaizen.model.networks.encoders import ResNet
from kaizen.model.networks.fit import kind_of

KEY = "encoder.weights"
ALLOWED = "FILE.safetensors, hub:OWNER/NAME, hub:OWNER/NAME:FILE.safetensors, auto or null"
HUB_FILE = "model.safetensors"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar", ".npz")
PREFIXES = ("module.", "_orig_mod.", "encoder.", "backbone.", "model.", "student.", "encoder_q.", "base_encoder.")
"""Beginnings under which programs save an encoder; what has another one is left out."""
HEADS = ("fc.", "head.", "heads.", "head_dist.", "classifier.", "last_linear.")
"""Beginnings of the names of classifiers."""
TORCHVISION = (
    ("class_token", "cls_token"),
    ("encoder.pos_embedding", "pos_embed"),
    ("conv_proj.", "patch_embed.proj."),
    ("encoder.layers.encoder_layer_", "blocks."),
    ("encoder.ln.", "norm."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.linear_1.", ".mlp.fc1."),
    (".mlp.linear_2.", ".mlp.fc2."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
)
"""Parts of the names of torchvision's ViTs, and what timm calls them."""


def named_source(encoder: EncoderConfig) -> str:
    """The source of pretrained weights in full: FILE.safetensors or hub:OWNER/NAME[:FILE].

    Raises:
        ConfigError: the key names no file of safetensors, or (auto) timm publishes none for the architecture.
    """
    assert encoder.weights is not None
    text = _published(encoder) if encoder.weights == AUTO else encoder.weights
    if text.endswith(PICKLED):
        place = text.rpartition(":")[2]
        code = (
            f"import torch; from safetensors.torch import save_file; held = torch.load('{place}', map_location='cpu', "
            "weights_only=True); held = held.get('state_dict', held.get('model', held)); "
            f"save_file({{k: v.clone() for k, v in held.items()}}, '{re.sub(r'[.][a-z]+$', '', place)}.safetensors')"
        )
        problem = f"is {text!r}, a pickled file, which may run any program when it is read"
        raise ConfigError(KEY, f'{problem}; allowed: safetensors; convert one that you trust: python -c "{code}"')
    is_hub = text.startswith("hub:")
    if is_hub and not re.fullmatch(r"hub:[\w.-]+/[\w.-]+(:[\w./-]+\.safetensors)?", text):
        raise ConfigError(KEY, f"is {text!r}; allowed: {ALLOWED}")
    if not is_hub and not text.endswith(".safetensors"):
        raise ConfigError(KEY, f"is {text!r}; allowed: {ALLOWED}")
    return text


def _published(encoder: EncoderConfig) -> str:
    """Where timm publishes weights for the architecture."""
    import timm
    from timm.models import get_pretrained_cfg

    if kind_of(encoder.name) == "resnet" and (encoder.width, encoder.norm) != (64, "batch"):
        problem = f"is auto, but {encoder.name} is published with encoder.width 64 and encoder.norm batch alone"
        raise ConfigError(KEY, f"{problem}; allowed: these, or FILE.safetensors")
    bare = encoder.name.removeprefix(TIMM)
    if kind_of(encoder.name) == "vit":
        sized = [f"{bare}_patch{side}_224" for side in (encoder.patch, 16)]
        bare = next(name for name in sized if timm.is_model(name))
    held = get_pretrained_cfg(bare) if timm.is_model(bare.partition(".")[0]) else None
    if held is None or not held.hf_hub_id:
        raise ConfigError(KEY, f"is auto, but timm publishes no weights for {encoder.name}; allowed: {ALLOWED}")
    return f"hub:{held.hf_hub_id}" + (f":{held.hf_hub_filename}" if held.hf_hub_filename else "")


def fitted(tensors: Mapping[str, Tensor], encoder: nn.Module, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file by the names and with the shapes of the encoder's, and what was changed, for the user.

    Args:
        encoder: may be on the meta device.
        source: names the file in errors.

    Raises:
        ConfigError: they do not fit; the message names the first that are missing, unknown or of another shape.
    """
    own = encoder.state_dict()
    found, notes = _stripped(tensors, own), list[str]()
    if any(name not in found or found[name].shape != t.shape for name, t in own.items()):
        found, notes = _converted(found, encoder, source)
    heads = sorted(name for name in found if name not in own and name.startswith(HEADS))
    if heads:
        notes.append(f"left out {', '.join(heads[:4])}{' ...' * (len(heads) > 4)}, the classifier of the file")
    found = {name: t for name, t in found.items() if name not in heads}
    missing = {name for name in own if name not in found and not name.endswith("num_batches_tracked")}
    if isinstance(encoder, ResNet) and _other_stem(found, own):
        sides = [f"{t['conv1.weight'].shape[-1]} x {t['conv1.weight'].shape[-1]}" for t in (found, own)]
        notes.append(f"the stem (conv1, bn1) starts at random: the file's is {sides[0]}, the encoder's {sides[1]}")
        found = {name: t for name, t in found.items() if not name.startswith(("conv1.", "bn1."))}
    _check(found, own, sorted(missing), source)
    return {name: t.to(own[name].dtype) for name, t in found.items()}, notes


def _stripped(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a file that may hold more, without the beginnings that all their names share."""
    found = dict(tensors)
    while not found.keys() & own.keys():
        if "patch_embed.proj.weight" in own and "conv_proj.weight" in found:
            return {_from_torchvision(name): t for name, t in found.items()}
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    return found


def _from_torchvision(name: str) -> str:
    for theirs, ours in TORCHVISION:
        name = name.replace(theirs, ours)
    return name


def _converted(found: dict[str, Tensor], encoder: nn.Module, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as timm converts them for a model of its own: other names, position embeddings of another grid."""
    modules = [sys.modules[kind.__module__] for kind in type(encoder).__mro__ if kind.__module__.startswith("timm.")]
    convert: Any = next((m.checkpoint_filter_fn for m in modules if hasattr(m, "checkpoint_filter_fn")), None)
    if convert is None:
        return found, []
    try:
        made = dict(convert(dict(found), encoder))
    except Exception as error:
        problem = (
            f"is {source}, which timm cannot convert ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        )
        raise ConfigError(KEY, f"{problem}; allowed: weights of {type(encoder).__name__}") from None
    changed = [
        f"{name} is resampled from {list(found[name].shape)} to {list(t.shape)}"
        for name, t in made.items()
        if name in found and found[name].shape != t.shape
    ]
    return made, changed[:4]


def _other_stem(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether only the side of the first convolution's kernel differs."""
    theirs, ours = found.get("conv1.weight"), own["conv1.weight"]
    return theirs is not None and theirs.shape[:2] == ours.shape[:2] and theirs.shape != ours.shape


def _check(found: Mapping[str, Tensor], own: Mapping[str, Tensor], missing: list[str], source: str) -> None:
    unknown = sorted(found.keys() - own.keys())
    other = [name for name, t in found.items() if name in own and own[name].shape != t.shape]
    problems = [f"lacks {', '.join(missing[:3])}"] if missing else []
    problems += [f"has unknown {', '.join(unknown[:3])}"] if unknown else []
    problems += [f"{name} is {list(found[name].shape)}, the encoder's is {list(own[name].shape)}" for name in other[:2]]
    if problems:
        counts = f"{len(missing)} missing, {len(unknown)} unknown, {len(other)} of another shape"
        problem = f"is {source}, which does not fit the encoder ({counts}): {'; '.join(problems)}"
        raise ConfigError(KEY, f"{problem}; allowed: weights of the same architecture")
    if broken := [name for name, t in found.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ConfigError(KEY, f"is {source}, in which {broken[0]} is not finite; allowed: finite weights")
