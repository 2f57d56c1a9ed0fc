"""The network: golden values, shapes of every variant, BatchNorm folding, and what it refuses."""

import golden_inputs
import pytest
import torch
from torch import nn

from data.config import CONFIGS, coco, coco512, voc, voc512
from layers.modules import MultiBoxLoss
from ssd import build_ssd, scaled

NARROW = 0.05  # width of networks whose numbers don't matter


def shapes(net):
    return {key: list(tensor.shape) for key, tensor in net.state_dict().items()}


def without_data(*args, **kwargs):
    """A network of shapes only."""
    with torch.device("meta"):
        return build_ssd(*args, **kwargs)


def noise(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 60


def narrow(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return build_ssd(*args, width=NARROW, **kwargs)


def assert_close(outputs, expected, tolerance):
    """Agreement relative to the largest magnitude, of (loc, conf)."""
    for a, b in zip(outputs, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


class TestGolden:
    def test_keys_and_shapes_are_the_published_ones(self, golden_shapes):
        assert shapes(without_data("test", 300, 21)) == shapes(without_data("train")) == golden_shapes

    def test_forward(self, golden, golden_output):
        loc, conf, priors = golden_output
        assert (loc.shape, conf.shape, priors.shape) == ((2, 8732, 4), (2, 8732, 21), (8732, 4))
        expected = [torch.from_numpy(golden[f"forward_{name}"]) for name in ("loc", "conf")]
        assert_close([output[:, golden["forward_rows"]] for output in (loc, conf)], expected, 1e-4)

    def test_a_batch_equals_its_singles(self, golden_net, golden_output):
        with torch.no_grad():
            single = golden_net.raw(golden_inputs.images()[1:])
        assert_close(single, [output[1:] for output in golden_output[:2]], 1e-5)


class TestVariants:
    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
    def test_output_fits_the_priors(self, config):
        with torch.device("meta"):
            net = build_ssd("train", num_classes=config.num_classes, config=config)
            loc, conf, priors = net(torch.zeros(2, 3, config.min_dim, config.min_dim))
        assert (net.cfg, net.size, net.num_classes) == (config, config.min_dim, config.num_classes)
        assert loc.shape == (2, config.num_priors, 4)
        assert conf.shape == (2, config.num_priors, config.num_classes)
        assert priors.shape == (config.num_priors, 4)

    def test_ssd300_feature_maps(self):
        maps = without_data("train").features(torch.zeros(1, 3, 300, 300, device="meta"))
        assert [m.shape[-1] for m in maps] == [38, 19, 10, 5, 3, 1]
        assert [m.shape[1] for m in maps] == [512, 1024, 512, 256, 256, 256]

    def test_ssd512_feature_maps(self):
        """Five pairs of extra layers; the last one shrinks 2 x 2 cells to one with a 4 x 4 kernel."""
        net = without_data("train", 512)
        assert [conv.out_channels for conv in net.extras] == [256, 512] + [128, 256] * 4
        assert [conv.kernel_size[0] for conv in net.extras] == [1, 3] * 4 + [1, 4]
        maps = net.features(torch.zeros(1, 3, 512, 512, device="meta"))
        assert [m.shape[-1] for m in maps] == [64, 32, 16, 8, 4, 2, 1]
        assert [m.shape[1] for m in maps] == [512, 1024, 512, 256, 256, 256, 256]

    @pytest.mark.parametrize("size", [300, 512])
    def test_one_training_step_lowers_the_loss(self, size):
        net, criterion = narrow("train", size, 4), MultiBoxLoss(4)
        boxes = [[0.2, 0.3, 0.6, 0.8, 1.0], [0.02, 0.02, 0.98, 0.98, 0.0], [0.7, 0.1, 0.78, 0.19, 2.0]]
        target = [torch.tensor(boxes), torch.zeros(0, 5)]  # large, whole and small: every map has its object
        before = sum(criterion(net(noise(size)), target))
        before.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        assert all(p.grad.any() for p in (net.vgg[0].weight, net.extras[-1].weight, net.L2Norm.weight))
        slope = sum((p.grad**2).sum() for p in net.parameters())
        torch.optim.SGD(net.parameters(), lr=float(0.01 * before / slope)).step()  # 1 % less, were the loss a plane
        with torch.no_grad():
            after = sum(criterion(net(noise(size)), target))
        assert 0.98 * before < after < 0.999 * before

    @pytest.mark.parametrize("size", [300, 512])
    def test_one_detection(self, size):
        net = narrow("test", size, 4)
        nn.init.normal_(net.conf[0].bias, std=2)
        out = net(noise(size))  # with gradients on, as course scripts run it
        assert out.shape == (2, 4, 200, 5)
        assert not out.requires_grad
        assert (out[:, 1:, 0, 0] > 0.01).all()
        net.phase = "train"
        loc, conf, priors = net(noise(size))
        torch.testing.assert_close(out, net.detect(loc, net.softmax(conf), priors), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("size", "num_classes", "config"),
        [(300, 21, voc), (300, 2, coco), (300, 81, coco), (512, 21, voc512), (512, 20, coco512)],
    )
    def test_priors_without_a_config_follow_the_lineage(self, size, num_classes, config):
        net = narrow("train", size, num_classes)
        assert net.cfg == config
        assert torch.equal(net.priors, net.priorbox.forward())
        assert net.priorbox.min_sizes == config.min_sizes

    def test_priors_move_with_the_network_but_are_not_saved(self):
        net = narrow("train", num_classes=7, config=voc)
        assert net.priorbox.min_sizes == voc.min_sizes
        assert "priors" not in net.state_dict()
        assert net.to("meta").priors.device.type == "meta"

    def test_width_scales_base_and_extras(self):
        net = without_data("train", width=0.25)
        assert [c.out_channels for c in net.vgg if isinstance(c, nn.Conv2d)] == (
            [16, 16, 32, 32, 64, 64, 64] + [128] * 6 + [256, 256]
        )
        assert [conv.out_channels for conv in net.extras] == [64, 128, 32, 64, 32, 64, 32, 64]
        assert (scaled(64, 0.1), scaled(512, 0.1), scaled(512, 1.0), scaled(512, 2)) == (16, 51, 512, 1024)

    def test_the_background_starts_likely(self):
        with torch.no_grad():
            background = narrow("train").raw(noise(300, 1) * 0)[1].softmax(-1)[..., 0]
        torch.testing.assert_close(background, torch.full_like(background, 0.9), atol=0.02, rtol=0)

    def test_bfloat16_autocast_stays_close(self):
        net, x = narrow("train").eval(), noise(300, 1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rough = net.raw(x)
            net.phase = "test"
            assert net(x).dtype == torch.float32
        for output, expected in zip(rough, net.raw(x), strict=True):
            assert output.dtype == torch.bfloat16
            assert (output.float() - expected).abs().mean() < 0.02 * expected.abs().mean()

    def test_float64_and_channels_last(self):
        """Gradients of several processes are compared in float64."""
        net, x = narrow("train").double().eval(), noise(300, 1).double()
        plain = net.raw(x)
        assert plain[0].dtype == torch.float64
        other = net.to(memory_format=torch.channels_last).raw(x.contiguous(memory_format=torch.channels_last))
        assert_close(other, plain, 1e-9)

    def test_an_empty_batch(self):
        assert narrow("test")(torch.zeros(0, 3, 300, 300)).shape == (0, 21, 200, 5)


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
    assert shapes(net) == shapes(without_data("train", width=NARROW))
    assert not net.training
    assert min(output.abs().max() for output in before) > 0.1


class TestLoadWeights:
    @pytest.mark.parametrize(("prefix", "wrapped", "suffix"), [("", False, ".pth"), ("module.", True, ".pkl")])
    def test_state_dicts(self, tmp_path, prefix, wrapped, suffix):
        source, net, path = narrow("train"), narrow("test", seed=1), tmp_path / f"weights{suffix}"
        state = {prefix + key: value for key, value in source.state_dict().items()}
        torch.save({"state_dict": state} if wrapped else state, path)
        net.load_weights(path)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in source.state_dict().items())
        del state[f"{prefix}loc.3.bias"]
        torch.save(state, path)
        with pytest.raises(RuntimeError, match=r"loc\.3\.bias"):
            net.load_weights(path)

    def test_another_suffix_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"\.pth and \.pkl"):
            narrow("test").load_weights(str(tmp_path / "weights.onnx"))


@pytest.mark.parametrize(
    ("allowed", "values"),
    [
        ("phase must be 'train' or 'test'", [{"phase": phase} for phase in ("eval", "Test", None)]),
        (r"size .*300.*512", [{"size": size} for size in (0, 299, "300", None)]),
        ("num_classes must be 2 or more", [{"num_classes": n} for n in (1, -3, 2.5, "21", None, True)]),
        ("width must be finite and greater than 0", [{"width": float(w)} for w in ("0", "-1", "nan", "inf")]),
    ],
)
def test_invalid_arguments_are_refused(allowed, values):
    for value in values:
        with pytest.raises(ValueError, match=allowed):
            build_ssd(**{"phase": "test", "width": NARROW} | value)


@pytest.mark.parametrize("shape", [(1, 3, 512, 512), (3, 300, 300), (1, 300, 300, 3), (1, 1, 300, 300)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[batch, 3, 300, 300\]"):
        narrow("test")(torch.zeros(shape))
