"""BatchNorm behind a network that was saved without it starts without effect."""

import numpy as np
import pytest
import torch

from data import voc
from ssd import SSD, ConvBN
from training.batch_norm import lacks_statistics, start_batch_norm

WIDTH = 0.05


def pictures(seed, count=4):
    return torch.from_numpy(np.random.RandomState(seed).uniform(-120, 130, (count, 3, 300, 300))).float()


@pytest.fixture
def plain():
    torch.manual_seed(0)
    net = SSD("train", voc, 4, WIDTH)
    for module in net.vgg:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.bias, std=5)  # far from what BatchNorm would make of it
    return net.eval()


@pytest.fixture
def with_batch_norm(plain):
    net = SSD("train", voc, 4, WIDTH, batch_norm=True)
    net.load_state_dict(plain.state_dict(), strict=False)
    return net


@torch.no_grad()
def error(net, plain, x):
    """Largest difference of the outputs, as a share of the largest output."""
    pairs = zip(net.raw(x), plain.raw(x), strict=True)
    return max(float((found - expected).abs().max() / expected.abs().max()) for found, expected in pairs)


def test_without_it_a_checkpoint_is_lost(plain, with_batch_norm):
    assert error(with_batch_norm.train(), plain, pictures(0)) > 0.3


def test_the_network_computes_what_it_did(plain, with_batch_norm):
    batches = [pictures(0), pictures(1, count=3)]
    start_batch_norm(with_batch_norm, batches)
    assert error(with_batch_norm.eval(), plain, pictures(2)) < 1e-4
    assert error(with_batch_norm.train(), plain, torch.cat(batches)) < 1e-2  # the variance of a batch is a biased one
    assert error(with_batch_norm.fuse(), plain, pictures(2)) < 1e-2


@torch.no_grad()
def test_statistics_are_those_of_all_batches(with_batch_norm):
    batches = [pictures(0), pictures(1, count=3)]
    start_batch_norm(with_batch_norm, batches)
    first = with_batch_norm.vgg[0]
    values = torch.nn.functional.conv2d(torch.cat(batches), first.weight, first.bias, padding=1)
    assert len(values) == 7
    torch.testing.assert_close(first.bn.running_mean, values.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first.bn.running_var, values.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-3)


def test_filters_are_as_large_as_fresh_ones(plain, with_batch_norm):
    """Whatever folding made of them; one that is zero stays zero, and is a constant as before."""
    for net in (plain, with_batch_norm):
        net.vgg[5].weight.data[:8] *= 1e-3
        net.vgg[7].weight.data[0] = 0
    start_batch_norm(with_batch_norm, [pictures(0)])
    fresh = SSD("train", voc, 4, WIDTH).vgg[5].weight.flatten(1).norm(dim=1)
    for index, zeros in ((2, 0), (5, 0), (7, 1)):
        norms = with_batch_norm.vgg[index].weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms[zeros:], torch.full_like(norms[zeros:], fresh.mean().item()), rtol=0.1, atol=0)
        assert bool((norms[:zeros] == 0).all())
    assert error(with_batch_norm.eval(), plain, pictures(2)) < 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_mode_and_hooks(with_batch_norm, training):
    net = with_batch_norm.train(training)
    assert lacks_statistics(net)
    start_batch_norm(net, [pictures(0, count=2)])
    assert not lacks_statistics(net)
    assert net.training == net.vgg[0].bn.training == training
    assert not any(layer.bn._forward_hooks for layer in net.modules() if isinstance(layer, ConvBN))


def test_a_network_trained_at_a_low_resolution_lacks_none(with_batch_norm):
    """Its last extra layers have seen nothing; what the others learned mustn't be measured away."""
    with_batch_norm.train().raw(pictures(0)[..., :176, :176])
    assert with_batch_norm.vgg[0].bn.num_batches_tracked == 1
    assert with_batch_norm.extras[-1].bn.num_batches_tracked == 0
    assert not lacks_statistics(with_batch_norm)


def test_a_plain_network_lacks_none(plain):
    assert not lacks_statistics(plain)
