"""Stochastic depth: what images skip follows from their keys alone, and only the student skips anything."""

import copy

import pytest
import torch
from timm.layers import DropPath as TimmDropPath
from timm.layers import drop_path as timm_drop_path

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.config.encoder import EncoderConfig
from kaizen.errors import ConfigError
from kaizen.model.networks.drop_path import DropPath, DropPaths, dropping
from kaizen.model.networks.encoders import Encoder, build_encoder
from kaizen.model.networks.heads import encode_all

KEYS = torch.arange(6) * 7919


def built(name: str = "vit_tiny", rate: float = 0.6, size: int = 8) -> Encoder:
    torch.manual_seed(0)
    patch = 2 if name.startswith("vit_") else None
    return build_encoder(EncoderConfig(name=name, stem="cifar", patch=patch, drop_path=rate), size).train()


def test_a_branch_is_dropped_at_its_rate_and_scaled_as_timm_does() -> None:
    path = DropPath(0.3)
    path.factors = DropPaths([path]).factors(torch.arange(4000), [0])[0]
    found = path(torch.ones(4000, 2, 3))
    skipped = found[:, 0, 0] == 0
    assert 0.28 < float(skipped.float().mean()) < 0.32
    torch.manual_seed(1)
    theirs = timm_drop_path(torch.ones(4000, 2, 3), 0.3, training=True)
    assert set(found.unique().tolist()) == set(theirs.unique().tolist())
    assert torch.equal(found, found[:, :1, :1].expand_as(found)), "a whole image at a time"


def test_rates_grow_to_that_of_the_last_block_and_timms_own_draws_are_gone() -> None:
    for name in ("vit_tiny", "timm:test_vit", "timm:test_resnet"):
        encoder = built(name, 0.6, 32)
        assert not any(isinstance(part, TimmDropPath) for part in encoder.modules())
        rates = [part.rate for part in encoder.modules() if isinstance(part, DropPath)]
        assert rates == sorted(rates)
        assert rates[0] > 0
        assert rates[-1] == pytest.approx(0.6)
    twice = [rate for rate in torch.linspace(0, 0.6, 12).tolist()[1:] for _ in range(2)]
    assert [part.rate for part in built().modules() if isinstance(part, DropPath)] == pytest.approx(twice)


def test_what_an_image_skips_follows_from_its_key_and_view_alone() -> None:
    encoder, views = built(), list(torch.randn(2, 6, 3, 8, 8).unbind())
    whole = encode_all(encoder, views, KEYS)
    some = torch.tensor([4, 1])
    for view, few in zip(whole, encode_all(encoder, [view[some] for view in views], KEYS[some]), strict=True):
        torch.testing.assert_close(few, view[some])
    same = encode_all(encoder, [views[0], views[0]], KEYS)
    assert not torch.allclose(same[0], same[1]), "the views of an image skip different branches"
    assert not torch.allclose(same[0], encode_all(encoder, views[:1], KEYS + 1)[0])


def test_without_keys_nothing_is_dropped_in_any_mode() -> None:
    encoder, images = built(), torch.randn(6, 3, 8, 8)
    plain = built(rate=0)
    assert plain.state_dict().keys() == encoder.state_dict().keys()
    plain.load_state_dict(encoder.state_dict())
    for network in (encoder.eval(), copy.deepcopy(encoder).train()):
        assert torch.equal(encode_all(network, [images])[0], plain(images))
    assert torch.equal(encode_all(plain, [images], KEYS)[0], plain(images))


def test_an_error_inside_leaves_nothing_behind() -> None:
    encoder = built()
    with pytest.raises(ConfigError, match=r"encoder\.drop_path: .* has 2 rows for 6 images"):
        encode_all(encoder, [torch.zeros(2, 3, 8, 8)], KEYS)
    assert torch.equal(encoder(torch.ones(1, 3, 8, 8)), encoder(torch.ones(1, 3, 8, 8)))
    with dropping(encoder, KEYS, [0, 3]):
        assert {len(part.factors) for part in encoder.modules() if isinstance(part, DropPath)} == {12}
    assert all(part.factors is None for part in encoder.modules() if isinstance(part, DropPath))


def test_blocks_with_different_rates_are_compiled_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    plain, compiled, views = built(), built(), list(torch.randn(2, 6, 3, 8, 8).unbind())
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    for block in compiled.blocks:  # type: ignore[union-attr]
        block.compile(backend=counter)
    for keys in (KEYS, KEYS + 1, None):
        for one, other in zip(encode_all(plain, views, keys), encode_all(compiled, views, keys), strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 3, "the first block, which drops nothing, the others, and those without keys"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (("--encoder.name", "resnet18"), r"encoder\.drop_path: is 0\.1; allowed: 0, as resnet18 has no drop_path"),
        (
            ("--encoder.name", "timm:vgg11", "--data.image_size", "32"),
            r"encoder\.drop_path: is 0\.1, and timm:vgg11 has no branches of stochastic depth; allowed: 0",
        ),
    ],
)
def test_it_is_refused_where_there_is_none(tokens: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(*parse_arguments(["digits", *tokens, "--encoder.drop_path", "0.1"]))
