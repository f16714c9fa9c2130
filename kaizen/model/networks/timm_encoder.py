"""Any model of timm as an encoder; timm is imported only where one is built, as it takes seconds to load."""

import difflib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from kaizen.config.encoder import TIMM
from kaizen.errors import ConfigError
from kaizen.model.networks.blocks import count_blocks, repeated_blocks
from kaizen.model.networks.drop_path import dropping, key_drop_paths

RATES = ("p", "drop_prob", "drop_rate", "drop_path_rate", "attn_drop_rate", "attn_drop", "dropout", "dropout_p")
"""Attributes in which models keep a probability of dropout; with "p", those of torch's own dropout."""
LOCAL_NORMS = ("EvoNorm2dB", "InplaceAbn", "SplitBatchNorm")
"""Beginnings of the names of norms that mix images and cannot be taken over the batch of all processes."""


@dataclass(frozen=True)
class Probed:
    """What a model of timm is, found without weights; blocks: how many can be frozen, its stem not counted."""

    feature_dim: int
    blocks: int
    has_batch_norm: bool


class _Draws(TorchDispatchMode):
    """Notes the random operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            # Attention has the tag whether or not it drops anything.
            if "dropout_p" not in names or given.get("dropout_p", 0):
                self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def build_timm(name: str, size: int, drop_path: float = 0) -> nn.Module:
    """The model timm:NAME for images of that side, initialised from torch's global generator; (n, 3, h, w) -> (n, d).

    Dropout inside it is off, as its draws would not repeat when a run resumes; those of `drop_path` do.
    """
    feature_dim = probe(name, size, (), drop_path).feature_dim
    model: nn.Module = _equipped(_made(name.removeprefix(TIMM), size, drop_path), feature_dim)
    return model


@lru_cache(maxsize=32)
def probe(name: str, size: int, crops: tuple[int, ...] = (), drop_path: float = 0) -> Probed:
    """Try the model timm:NAME on images of that side, and on small crops of other sides, without computing anything.

    Raises:
        ConfigError: timm has no such model, it does not take these sizes, it does not give one vector of features per
            image, it draws random numbers, its norms do not work on several processes, or no branch can be dropped.
    """
    arch = name.removeprefix(TIMM)
    _check_name(arch)
    try:
        with torch.device("meta"):
            model = _made(arch, size, drop_path)
        dim = _tried(model, name, (size, *crops), "meta")
    except ConfigError:
        raise
    except Exception:
        # Some models compute with numbers of tensors while they are built, which meta tensors do not have.
        model = _built(name, arch, size, drop_path)
        dim = _tried(model, name, (size, *crops), "cpu")
    if bad := sorted({type(part).__name__ for part in model.modules() if type(part).__name__.startswith(LOCAL_NORMS)}):
        problem = f"is {name}, whose {bad[0]} cannot take its statistics from the batch of all processes"
        raise ConfigError("encoder.name", f"{problem}; allowed: models with other norms")
    return Probed(dim, count_blocks(model), any(isinstance(part, _BatchNorm) for part in model.modules()))


def _check_name(arch: str) -> None:
    import timm

    bare, _, tag = arch.partition(".")
    if not timm.is_model(bare):
        names = timm.list_models()
        near = difflib.get_close_matches(bare, names, n=3)
        hint = f"did you mean {' or '.join(TIMM + one for one in near)}?" if near else "timm.list_models() lists them"
        raise ConfigError("encoder.name", f"is '{TIMM}{arch}', which timm does not have; {hint}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{bare}.*") if "." in name]
    if tag and tag not in tags:
        allowed = ", ".join(f"{TIMM}{bare}.{one}" for one in tags) or f"{TIMM}{bare}"
        raise ConfigError("encoder.name", f"is '{TIMM}{arch}', and timm has no such weights; allowed: {allowed}")


def _built(name: str, arch: str, size: int, drop_path: float) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return _made(arch, size, drop_path)
    except ConfigError:
        raise
    except Exception as error:
        problem = f"is {name}, which cannot be built for images of {size} pixels: {_brief(error)}"
        raise ConfigError("encoder.name", f"{problem}; allowed: another model, or another data.image_size") from None


def creation_arguments(name: str, size: int) -> dict[str, Any]:
    """Arguments of `timm.create_model`, beside num_classes=0, that build timm:NAME for images of that side."""
    with torch.device("meta"):
        return _created(name.removeprefix(TIMM), size, {})[1]


def _made(arch: str, size: int, drop_path: float) -> nn.Module:
    """The model without its last layer and without dropout, for images of that side if it has one of its own."""
    model, _ = _created(arch, size, {"drop_path_rate": drop_path} if drop_path else {})
    if not key_drop_paths(model) and drop_path:
        problem = f"is {drop_path}, and {TIMM}{arch} has no branches of stochastic depth; allowed: 0"
        raise ConfigError("encoder.drop_path", problem)
    for part in model.modules():
        for attribute in RATES[not isinstance(part, nn.modules.dropout._DropoutNd) :]:
            if isinstance(getattr(part, attribute, None), float):
                setattr(part, attribute, 0.0)
    return model


def _created(arch: str, size: int, rates: dict[str, float]) -> tuple[nn.Module, dict[str, Any]]:
    """timm's own model, and the arguments that it took; without the rates if it knows none."""
    import timm

    # Models with position embeddings need the side; some of them can interpolate those for small crops.
    sides: list[dict[str, Any]] = [{"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}]
    for options in [side | rates for side in sides] + ([{}] if rates else []):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return timm.create_model(arch, pretrained=False, num_classes=0, **options), options
        except TypeError as error:
            if not options or "unexpected keyword argument" not in str(error):
                raise
    raise AssertionError("the last try has no arguments that a model may refuse")


def _tried(model: nn.Module, name: str, sides: tuple[int, ...], device: str) -> int:
    """Features that the model gives for two images of each side."""
    dims = set()
    for side in sides:
        try:
            keys = torch.zeros(2, dtype=torch.int64, device=device)
            with _Draws() as draws, torch.no_grad(), dropping(model, keys, [0]):
                out = model.train()(torch.zeros(2, 3, side, side, device=device))
        except ConfigError:
            raise
        except Exception as error:
            if device == "meta":
                raise
            key, problem = "encoder.name", f"is {name}, which does not take images of {side} pixels: {_brief(error)}"
            raise ConfigError(
                key, f"{problem}; allowed: another model, or other sizes of images and small crops"
            ) from None
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
            found = f"a tensor of shape {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            problem = f"is {name}, which gives {found} for 2 images; allowed: models that give features (2, d)"
            raise ConfigError("encoder.name", problem)
        if draws.found:
            problem = f"is {name}, which draws random numbers in training ({', '.join(sorted(draws.found))})"
            raise ConfigError("encoder.name", f"{problem}; allowed: models without, so that a run resumes bit for bit")
        dims.add(out.shape[1])
    if len(dims) > 1:
        raise ConfigError("encoder.name", f"is {name}, whose features differ in size for images of {sides} pixels")
    return dims.pop()


def _equipped(model: Any, feature_dim: int) -> Any:
    """The model with the attributes that all encoders have."""
    listed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    within = tuple(model.no_weight_decay_keywords()) if hasattr(model, "no_weight_decay_keywords") else ()
    names = [name for name, _ in model.named_parameters()]
    model.plain = tuple(name for name in names if name in listed or any(word in name for word in within))
    model.block_names = repeated_blocks(model)
    model.feature_dim = feature_dim
    return model


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
