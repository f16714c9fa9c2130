"""Encoders and heads: shapes, and values against torchvision's networks."""

import pytest
import torch
import torchvision
from torch import nn

from kaizen.cli.resolve import resolve
from kaizen.config.encoder import EncoderConfig
from kaizen.model.learner import Network
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.heads import forget_running_statistics, forward_all, mlp
from kaizen.model.networks.norm import views_apart
from kaizen.parallel import Parallel, memory_format


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_equal_torchvisions(name: str) -> None:
    ours = build_encoder(EncoderConfig(name=name, stem="imagenet")).eval()
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    assert ours.feature_dim == {"resnet50": 2048}.get(name, 512)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("padding", "size"), [(1, 8), (2, 10)])
def test_cifar_stem_keeps_the_resolution(norm: str, padding: int, size: int) -> None:
    encoder = build_encoder(EncoderConfig(stem="cifar", stem_padding=padding, norm=norm, width=6))  # type: ignore[arg-type]
    stem = encoder.maxpool(encoder.conv1(torch.randn(2, 3, 8, 8)))
    assert stem.shape == (2, 6, size, size)
    assert encoder(torch.randn(2, 3, 8, 8)).shape == (2, encoder.feature_dim) == (2, 48)
    has_batchnorm = any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    assert has_batchnorm == (norm == "batch")


def test_a_cifar_stem_starts_as_torch_starts_it_and_every_other_convolution_by_its_outputs() -> None:
    torch.manual_seed(0)
    for stem, expected in (("cifar", (1 / (3 * 27)) ** 0.5), ("imagenet", (2 / (64 * 49)) ** 0.5)):
        encoder = build_encoder(EncoderConfig(stem=stem))  # type: ignore[arg-type]
        assert float(encoder.conv1.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        inner = encoder.layer1[0].conv1.weight.detach()
        assert float(inner.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    torch.manual_seed(1)
    stem = build_encoder(EncoderConfig(stem="cifar")).conv1.weight
    torch.manual_seed(1)
    assert torch.equal(stem, nn.Conv2d(3, 64, 3, bias=False).weight)


def test_mlp_forms() -> None:
    assert [type(layer) for layer in mlp((4, 2))] == [nn.Linear]
    assert [type(layer) for layer in mlp((4, 8, 8, 2))] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in mlp((4, 8, 2), norm=True)] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_forgetting_statistics_normalises_by_the_batch_in_both_modes() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    x = torch.randn(16, 3) * 4 + 1
    expected = network.train()(x)
    forget_running_statistics(network)
    assert torch.equal(network.eval()(x), expected)
    assert torch.equal(network.train()(x), expected)


@pytest.mark.parametrize(("width", "layout"), [("8", torch.contiguous_format), ("16", torch.channels_last)])
def test_images_and_weights_lie_alike_and_where_the_cpu_can_take_it_channels_last(
    width: str, layout: torch.memory_format
) -> None:
    config = resolve("digits", {"encoder.width": width})[1]
    parallel = Parallel()
    network = parallel.placed(Network(config, 10))
    assert memory_format(network, parallel.device) == layout
    weight = network.encoder.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=layout)
    assert memory_format(network, torch.device("cuda")) == torch.channels_last
    assert memory_format(build_encoder(resolve("digits-vit", {})[1].encoder, 8), parallel.device) == torch.channels_last


def test_views_in_one_call_have_statistics_of_their_own() -> None:
    views = [torch.randn(6, 3, 8, 8) + number for number in range(3)]
    found = []
    for together in (True, False):
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(stem="cifar", width=4)).double()
        if together:
            with views_apart(3):
                features = encoder(torch.cat(views).double())
        else:
            features = torch.cat(forward_all(encoder, [view.double() for view in views]))
        features.square().mean().backward()
        found.append([features, *(p.grad for p in encoder.parameters()), *encoder.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
