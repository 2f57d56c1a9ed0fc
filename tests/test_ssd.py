"""The network: golden values, shapes of every variant, BatchNorm folding, and what it refuses."""

import golden_inputs
import pytest
import torch
from torch import nn

from data.config import coco, coco512, voc, voc512
from layers.functions import PriorBox
from layers.modules import MultiBoxLoss
from ssd import build_ssd, scaled

NARROW = 0.05  # width of networks whose numbers don't matter


def narrow(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return build_ssd(*args, width=NARROW, **kwargs)


def without_data(*args, **kwargs):
    """A network of shapes only."""
    with torch.device("meta"):
        return build_ssd(*args, **kwargs)


def noise(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 60


def assert_close(outputs, expected, tolerance):
    """Agreement of (loc, conf), relative to the largest magnitude."""
    for a, b in zip(outputs, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_golden_forward(golden, golden_net, golden_output):
    """The golden weights have the keys and shapes of the published files, and are loaded with strict=True."""
    expected = [torch.from_numpy(golden[f"forward_{name}"]) for name in ("loc", "conf")]
    assert_close([output[:, golden["forward_rows"]] for output in golden_output[:2]], expected, 1e-4)
    with torch.no_grad():
        single = golden_net.raw(golden_inputs.images()[1:])  # a batch equals its singles
    assert_close(single, [output[1:] for output in golden_output[:2]], 1e-5)


@pytest.mark.parametrize(("size", "sides"), [(300, [38, 19, 10, 5, 3, 1]), (512, [64, 32, 16, 8, 4, 2, 1])])
def test_feature_maps(size, sides):
    net = without_data("train", size)
    maps = net.features(torch.zeros(1, 3, size, size, device="meta"))
    assert [m.shape[-1] for m in maps] == sides
    assert [m.shape[1] for m in maps] == [512, 1024, 512] + [256] * (len(sides) - 3)
    assert [conv.out_channels for conv in net.extras] == [256, 512] + [128, 256] * (len(sides) - 3)
    assert [conv.kernel_size[0] for conv in net.extras[-2:]] == [1, 3 if size == 300 else 4]


@pytest.mark.parametrize("size", [300, 512])
def test_one_training_step_lowers_the_loss(size):
    net, criterion = narrow("train", size, 4), MultiBoxLoss(4)
    boxes = [[0.2, 0.3, 0.6, 0.8, 1.0], [0.02, 0.02, 0.98, 0.98, 0.0], [0.7, 0.1, 0.78, 0.19, 2.0]]
    target = [torch.tensor(boxes), torch.zeros(0, 5)]  # large, whole and small: every map has its object
    before = sum(criterion(net(noise(size)), target))
    before.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert all(p.grad.any() for p in (net.vgg[0].weight, net.extras[-1].weight, net.L2Norm.weight))
    slope = sum((p.grad**2).sum() for p in net.parameters())
    torch.optim.SGD(net.parameters(), lr=0.01 * before.item() / slope.item()).step()  # 1 % less, were the loss a plane
    with torch.no_grad():
        after = sum(criterion(net(noise(size)), target))
    assert 0.98 * before < after < 0.999 * before


@pytest.mark.parametrize("size", [300, 512])
def test_one_detection(size):
    net = narrow("test", size, 4)
    nn.init.normal_(net.conf[0].bias, std=2)
    out = net(noise(size))  # with gradients on, as course scripts run it
    assert (out.shape, out.requires_grad) == ((2, 4, 200, 5), False)
    assert (out[:, 1:, 0, 0] > 0.01).all()
    assert net(noise(size)[:0]).shape == (0, 4, 200, 5)
    net.phase = "train"
    loc, conf, priors = net(noise(size))
    torch.testing.assert_close(out, net.detect(loc, net.softmax(conf), priors), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "num_classes", "lineages"), [
    (300, 21, voc), (300, 2, coco), (300, 81, coco), (512, 21, voc512), (512, 20, coco512),
])  # fmt: skip
def test_priors_follow_the_lineage_or_the_config(size, num_classes, lineages):
    own = narrow("test", num_classes=num_classes, config=voc512)
    for net, config in ((narrow("train", size, num_classes), lineages), (own, voc512)):
        assert (net.cfg, net.size, net.num_classes) == (config, config.min_dim, num_classes)
        assert torch.equal(net.priors, PriorBox(config).forward())
        assert net.priorbox.version == config.name
    assert "priors" not in own.state_dict()
    assert own.to("meta").priors.device.type == "meta"


def test_width_scales_base_and_extras():
    net = without_data("train", width=0.25)
    base = [layer.out_channels for layer in net.vgg if isinstance(layer, nn.Conv2d)]
    assert base == [16, 16, 32, 32, 64, 64, 64] + [128] * 6 + [256, 256]
    assert [conv.out_channels for conv in net.extras] == [64, 128, 32, 64, 32, 64, 32, 64]
    assert (scaled(64, 0.1), scaled(512, 0.1), scaled(512, 1.0), scaled(512, 2)) == (16, 51, 512, 1024)


def test_the_background_starts_likely():
    with torch.no_grad():
        background = narrow("train").raw(noise(300, 1) * 0)[1].softmax(-1)[..., 0]
    torch.testing.assert_close(background, torch.full_like(background, 0.9), atol=0.02, rtol=0)


@torch.no_grad()
def test_bfloat16_autocast_stays_close():
    net, x = narrow("test"), noise(300, 1)
    with torch.autocast("cpu", torch.bfloat16):
        rough, detections = net.raw(x), net(x)
    assert [output.dtype for output in (*rough, detections)] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for output, expected in zip(rough, net.raw(x), strict=True):
        assert (output.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_batch_norm_is_folded_away():
    net = narrow("train", batch_norm=True).eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 15 + 8  # behind each convolution of base and extras
    for norm in norms:  # statistics and scales that matter
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 4.5)
        nn.init.normal_(norm.bias, std=0.3)
        nn.init.normal_(norm.running_mean)
    with torch.no_grad():
        before = net.raw(noise(300))
        assert net.train().fuse() is net
        for _ in range(2):  # fusing a plain network changes nothing
            assert_close(net.fuse().raw(noise(300)), before, 1e-4)
    assert not net.training
    narrow("train").load_state_dict(net.state_dict(), strict=True)


@pytest.mark.parametrize(("prefix", "wrapped", "suffix"), [("", False, ".pth"), ("module.", True, ".pkl")])
def test_load_weights(tmp_path, prefix, wrapped, suffix):
    source, net, path = narrow("train"), narrow("test", seed=1), tmp_path / f"weights{suffix}"
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state} if wrapped else state, path)
    net.load_weights(path)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in source.state_dict().items())
    del state[f"{prefix}loc.3.bias"]
    torch.save(state, path)
    with pytest.raises(RuntimeError, match=r"loc\.3\.bias"):
        net.load_weights(path)
    with pytest.raises(ValueError, match=r"\.pth and \.pkl"):
        net.load_weights("weights.onnx")


@pytest.mark.parametrize(("name", "values", "allowed"), [
    ("phase", ("eval", "Test", None), "phase must be 'train' or 'test'"),
    ("size", (0, 299, "300", None), "size .*300.*512"),
    ("num_classes", (1, -3, 2.5, "21", None, True), "num_classes must be 2 or more"),
    ("width", (0.0, -1.0, float("nan"), float("inf")), "width must be finite and greater than 0"),
])  # fmt: skip
def test_invalid_arguments_are_refused(name, values, allowed):
    for value in values:
        with pytest.raises(ValueError, match=allowed):
            build_ssd(**{"phase": "test", "width": NARROW, name: value})


@pytest.mark.parametrize("shape", [(1, 3, 512, 512), (3, 300, 300), (1, 300, 300, 3), (1, 1, 300, 300)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[batch, 3, 300, 300\]"):
        narrow("test")(torch.zeros(shape))
