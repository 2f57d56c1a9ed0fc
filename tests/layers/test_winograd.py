"""The quick convolution: the same numbers as the direct one, forwards and backwards."""

from copy import deepcopy

import golden_inputs
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from layers.functions import winograd
from layers.functions.winograd import Winograd, convolve, kernel_gradient, transform_kernels
from layers.modules import WinogradConv2d, use_winograd
from ssd import build_ssd


def case(generator, batch, inputs, outputs, height, width, dtype=torch.float64):
    """(x, weight, bias), each with a gradient to come."""
    shapes = (batch, inputs, height, width), (outputs, inputs, 3, 3), (outputs,)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


SHAPES = [(1, 3, 5, 7, 9), (2, 4, 3, 19, 19), (3, 2, 2, 1, 1), (2, 8, 8, 38, 13), (1, 2, 3, 4, 8), (5, 3, 2, 2, 3)]


@pytest.mark.parametrize("strip", [1, 3, 7, 400])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_direct_convolution(monkeypatch, generator, shape, strip):
    monkeypatch.setattr(winograd, "STRIP", strip)
    x, weight, bias = case(generator, *shape)
    quick, direct = Winograd.apply(x, weight, bias), functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(quick, direct, rtol=0, atol=1e-11)
    gradient = torch.randn(direct.shape, generator=generator, dtype=direct.dtype)
    gradients = [torch.autograd.grad(result, (x, weight, bias), gradient) for result in (quick, direct)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_gradients_by_differences(generator):
    assert torch.autograd.gradcheck(Winograd.apply, case(generator, 2, 2, 3, 5, 6))


def test_no_gradients_of_gradients(generator):
    x, weight, bias = case(generator, 1, 2, 2, 5, 5)
    (gradient,) = torch.autograd.grad(Winograd.apply(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats(generator, memory_format):
    x, weight, bias = (tensor.detach() for tensor in case(generator, 2, 4, 6, 11, 10))
    x = x.contiguous(memory_format=memory_format)
    before = x.clone()
    result = convolve(x, transform_kernels(weight), bias)
    torch.testing.assert_close(result, functional.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-11)
    assert result.stride(1) == 1
    assert torch.equal(x, before)


def test_without_bias(generator):
    x, weight, _ = (tensor.detach() for tensor in case(generator, 1, 3, 4, 6, 6))
    torch.testing.assert_close(
        convolve(x, transform_kernels(weight)), functional.conv2d(x, weight, padding=1), rtol=0, atol=1e-11
    )


def test_what_lies_beyond_the_outputs_has_no_share_in_the_gradient(generator):
    """5 outputs take two patches of four: three of those eight don't exist."""
    x, weight, bias = case(generator, 1, 2, 2, 5, 5)
    direct = functional.conv2d(x, weight, bias, padding=1)
    (expected,) = torch.autograd.grad(direct.sum(), weight)
    torch.testing.assert_close(kernel_gradient(x.detach(), torch.ones_like(direct)), expected, rtol=0, atol=1e-11)


def test_float32_comes_close(generator):
    """As a layer of VGG: the error stays near 1e-5 of the outputs' size."""
    x, weight, bias = (tensor.detach() for tensor in case(generator, 1, 256, 256, 19, 19))
    weight /= 48
    direct = functional.conv2d(x, weight, bias, padding=1)
    quick = convolve(x.float(), transform_kernels(weight.float()), bias.float())
    assert (quick - direct).abs().max() < 1e-4 * direct.abs().max()
    assert (quick - direct).std() < 1e-5 * direct.std()


class TestModule:
    def layer(self, generator, dtype=torch.float32):
        net = nn.Sequential(nn.Conv2d(128, 130, 3, padding=1), nn.ReLU(inplace=True)).to(dtype)
        x = torch.randn(2, 128, 9, 9, generator=generator).to(dtype)
        return net, x

    @pytest.mark.parametrize("frozen", [False, True])
    def test_is_the_layer_that_it_was(self, generator, frozen):
        net, x = self.layer(generator)
        with torch.no_grad():
            expected, names = net(x), list(net.state_dict())
            assert use_winograd(net, frozen=frozen) == 1
            assert isinstance(net[0], WinogradConv2d)
            torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-4)
            assert not torch.equal(net(x), expected)  # it did take the other way
        assert list(net.state_dict()) == names

    def test_learns_as_the_layer_that_it_was(self, generator):
        net, x = self.layer(generator)
        quick = deepcopy(net)
        use_winograd(quick)
        for one in (net, quick):
            one(x).square().sum().backward()
        for one, other in zip(net.parameters(), quick.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-4 * float(one.grad.abs().max()))

    def test_a_step_changes_what_it_computes(self, generator):
        net, x = self.layer(generator)
        use_winograd(net)
        before = net(x).detach()
        net(x).sum().backward()
        torch.optim.SGD(net.parameters(), 1e-3).step()
        direct = functional.conv2d(x, net[0].weight, net[0].bias, padding=1).relu()
        torch.testing.assert_close(net(x), direct, rtol=0, atol=1e-4 * float(direct.detach().max()))
        assert (net(x) - before).abs().max() > 0.1

    def test_frozen_again_takes_the_new_weights(self, generator):
        net, x = self.layer(generator)
        with torch.no_grad():
            use_winograd(net, frozen=True)
            net[0].weight.mul_(2)
            use_winograd(net, frozen=True)
            torch.testing.assert_close(
                net(x), functional.conv2d(x, net[0].weight, net[0].bias, padding=1).relu(), rtol=0, atol=1e-4
            )

    def test_no_longer_frozen(self, generator):
        net, x = self.layer(generator)
        with torch.no_grad():
            use_winograd(net, frozen=True)
            net[0].weight.mul_(2)
            use_winograd(net)
            torch.testing.assert_close(
                net(x), functional.conv2d(x, net[0].weight, net[0].bias, padding=1).relu(), rtol=0, atol=1e-4
            )

    def test_other_precisions_take_the_direct_way(self, generator):
        net, x = self.layer(generator, torch.float64)
        with torch.no_grad():
            expected = net(x)
            use_winograd(net)
            assert torch.equal(net(x), expected)
            net, x = self.layer(generator)
            use_winograd(net)
            with torch.autocast("cpu", torch.bfloat16):
                assert net(x).dtype == torch.bfloat16

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(128, 128, 1),
            nn.Conv2d(128, 128, 3),
            nn.Conv2d(128, 128, 3, stride=2, padding=1),
            nn.Conv2d(128, 128, 3, padding=2, dilation=2),
            nn.Conv2d(128, 128, 3, padding=1, groups=2),
            nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.Conv2d(128, 64, 3, padding=1),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_left_alone(self, conv):
        assert use_winograd(nn.Sequential(conv)) == 0
        assert type(conv) is nn.Conv2d


def test_the_papers_network(golden, golden_weights):
    """Ten of VGG's thirteen convolutions, conv2_2 to conv5_3; the golden values hold."""
    net = build_ssd("train", 300, 21)
    net.load_state_dict(golden_weights, strict=True)
    assert use_winograd(net.eval(), frozen=True) == 10
    with torch.no_grad():
        loc, conf, _ = net(golden_inputs.pictures())
    for name, output in (("loc", loc), ("conf", conf)):
        expected = golden[f"forward_{name}"]
        rows = output[:, golden["forward_rows"]].numpy()
        assert np.abs(rows - expected).max() <= 1e-4 * np.abs(expected).max()
