"""The network: golden values, shapes of every variant, BatchNorm folding, and what it refuses."""

import golden_inputs
import pytest
import torch
from torch import nn

from data.config import coco, coco512, voc, voc512
from layers.modules import MultiBoxLoss
from ssd import SSD, build_ssd, scaled

NARROW = 0.05  # width of networks whose numbers don't matter


def shapes(net):
    return {key: list(tensor.shape) for key, tensor in net.state_dict().items()}


def without_data(*args, **kwargs):
    """A network of shapes only."""
    with torch.device("meta"):
        return build_ssd(*args, **kwargs)


def noise(size, batch=2, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 60


def with_lively_batch_norm(net, seed=0):
    """Give BatchNorm's statistics and scales values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) * 4 + 0.5)
    return net.eval()


class TestGolden:
    def test_keys_and_shapes_are_the_published_ones(self, golden_shapes):
        assert shapes(without_data("test", 300, 21)) == golden_shapes
        assert shapes(without_data("train", 300, 21)) == golden_shapes

    @pytest.mark.parametrize("name", ["loc", "conf"])
    def test_forward(self, golden, golden_output, name):
        output = golden_output[0 if name == "loc" else 1][:, golden["forward_rows"]].numpy()
        expected = golden[f"forward_{name}"]
        assert abs(output - expected).max() <= 1e-4 * abs(expected).max()

    def test_shapes_in_train_phase(self, golden_output):
        loc, conf, priors = golden_output
        assert (loc.shape, conf.shape, priors.shape) == ((2, 8732, 4), (2, 8732, 21), (8732, 4))

    def test_a_batch_equals_its_singles(self, golden_net, golden_output):
        with torch.no_grad():
            loc, conf, _ = golden_net(golden_inputs.pictures()[1:])
        assert (loc - golden_output[0][1:]).abs().max() <= 1e-5 * golden_output[0].abs().max()
        assert (conf - golden_output[1][1:]).abs().max() <= 1e-5 * golden_output[1].abs().max()

    def test_published_weights_load_in_test_phase_as_well(self, golden_weights):
        net = build_ssd("test", 300, 21)
        net.load_state_dict(golden_weights, strict=True)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in golden_weights.items())


class TestVariants:
    @pytest.mark.parametrize("config", [voc, coco, voc512, coco512], ids=lambda config: config.name)
    def test_output_fits_the_priors(self, config):
        with torch.device("meta"):
            net = SSD("train", config, config.num_classes)
            loc, conf, priors = net(torch.zeros(2, 3, config.min_dim, config.min_dim))
        assert loc.shape == (2, config.num_priors, 4)
        assert conf.shape == (2, config.num_priors, config.num_classes)
        assert priors.shape == (config.num_priors, 4)

    def test_ssd512_has_24564_priors(self):
        assert build_ssd("test", 512, width=NARROW).priors.shape == (24564, 4)

    def test_ssd512_extra_layers(self):
        """Five pairs; the last one shrinks 2 x 2 cells to one with a 4 x 4 kernel."""
        net = without_data("train", 512)
        assert [conv.out_channels for conv in net.extras] == [256, 512] + [128, 256] * 4
        assert [conv.kernel_size[0] for conv in net.extras] == [1, 3] * 4 + [1, 4]
        maps = net.features(torch.zeros(1, 3, 512, 512, device="meta"))
        assert [m.shape[-1] for m in maps] == [64, 32, 16, 8, 4, 2, 1]
        assert [m.shape[1] for m in maps] == [512, 1024, 512, 256, 256, 256, 256]

    def test_ssd300_feature_maps(self):
        maps = without_data("train").features(torch.zeros(1, 3, 300, 300, device="meta"))
        assert [m.shape[-1] for m in maps] == [38, 19, 10, 5, 3, 1]
        assert [m.shape[1] for m in maps] == [512, 1024, 512, 256, 256, 256]

    @pytest.mark.parametrize("size", [300, 512])
    def test_one_training_step_lowers_the_loss(self, size):
        torch.manual_seed(0)
        net = build_ssd("train", size, 4, width=NARROW)
        boxes = [[0.2, 0.3, 0.6, 0.8, 1.0], [0.02, 0.02, 0.98, 0.98, 0.0], [0.7, 0.1, 0.78, 0.19, 2.0]]
        target = [torch.tensor(boxes), torch.zeros(0, 5)]  # large, whole and small: every map has its object
        before = sum(MultiBoxLoss(4)(net(noise(size)), target))
        before.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        assert all(p.grad.any() for p in (net.vgg[0].weight, net.extras[-1].weight, net.L2Norm.weight))
        slope = sum((p.grad**2).sum() for p in net.parameters())
        torch.optim.SGD(net.parameters(), lr=float(0.01 * before / slope)).step()  # 1 % less, were the loss a plane
        with torch.no_grad():
            after = sum(MultiBoxLoss(4)(net(noise(size)), target))
        assert 0.98 * before < after < 0.999 * before

    @pytest.mark.parametrize("size", [300, 512])
    def test_one_detection(self, size):
        torch.manual_seed(0)
        net = build_ssd("test", size, 4, width=NARROW)
        nn.init.normal_(net.conf[0].bias, std=2)
        out = net(noise(size))  # with gradients on, as course scripts run it
        assert not out.requires_grad
        assert out.shape == (2, 4, 200, 5)
        assert not out[:, 0].any()
        assert (out[:, 1:, 0, 0] > 0.01).all()
        assert torch.isfinite(out).all()
        net.phase = "train"
        loc, conf, priors = net(noise(size))
        torch.testing.assert_close(out, net.detect(loc, conf.softmax(-1), priors), atol=1e-5, rtol=0)

    def test_a_config_brings_its_size_and_priors(self, golden):
        net = build_ssd("train", num_classes=7, config=coco, width=NARROW)
        torch.testing.assert_close(net.priors, torch.from_numpy(golden["priors_coco300"]), atol=1e-6, rtol=0)
        assert build_ssd("train", config=voc512, width=NARROW).size == 512

    @pytest.mark.parametrize("num_classes", [2, 21, 81])
    def test_priors_do_not_depend_on_the_class_count(self, golden, num_classes):
        net = build_ssd("train", 300, num_classes, width=NARROW)
        torch.testing.assert_close(net.priors, torch.from_numpy(golden["priors_voc300"]), atol=1e-6, rtol=0)
        assert net.raw(noise(300, 1))[1].shape == (1, 8732, num_classes)

    def test_priors_move_with_the_network_but_are_not_saved(self):
        net = build_ssd("train", width=NARROW)
        assert "priors" not in net.state_dict()
        assert "priors" in dict(net.named_buffers())
        assert net.to("meta").priors.device.type == "meta"

    def test_width_scales_base_and_extras(self):
        net = without_data("train", width=0.25)
        assert [c.out_channels for c in net.vgg if isinstance(c, nn.Conv2d)] == (
            [16, 16, 32, 32, 64, 64, 64] + [128] * 6 + [256, 256]
        )
        assert [conv.out_channels for conv in net.extras] == [64, 128, 32, 64, 32, 64, 32, 64]
        assert [head.out_channels for head in net.conf] == [4 * 21, 6 * 21, 6 * 21, 6 * 21, 4 * 21, 4 * 21]
        assert 2.2e6 < sum(p.numel() for p in net.parameters()) < 2.4e6
        assert (scaled(64, 0.1), scaled(512, 0.1), scaled(512, 1.0), scaled(512, 2)) == (16, 51, 512, 1024)

    def test_the_background_starts_likely(self):
        net = build_ssd("train", width=NARROW)
        with torch.no_grad():
            background = net.raw(noise(300, 1) * 0)[1].softmax(-1)[..., 0]
        torch.testing.assert_close(background, torch.full_like(background, 0.9), atol=0.02, rtol=0)

    def test_bfloat16_autocast_stays_close(self):
        torch.manual_seed(0)
        net, x = build_ssd("train", width=NARROW).eval(), noise(300, 1)
        with torch.no_grad():
            exact = net.raw(x)
            with torch.autocast("cpu", torch.bfloat16):
                rough = net.raw(x)
        for output, expected in zip(rough, exact, strict=True):
            assert output.dtype == torch.bfloat16
            assert (output.float() - expected).abs().mean() < 0.02 * expected.abs().mean()

    def test_detections_of_a_bfloat16_pass_are_float32(self):
        net = build_ssd("test", width=NARROW)
        with torch.autocast("cpu", torch.bfloat16):
            assert net(noise(300, 1)).dtype == torch.float32

    def test_float64(self):
        """What gradients of several processes are compared in."""
        net = build_ssd("train", width=NARROW).double()
        loc, conf, _ = net(noise(300, 1).double())
        assert loc.dtype == conf.dtype == torch.float64

    def test_channels_last_gives_the_same(self):
        torch.manual_seed(0)
        net, x = build_ssd("train", width=NARROW).eval(), noise(300, 1)
        plain = net.raw(x)
        other = net.to(memory_format=torch.channels_last).raw(x.contiguous(memory_format=torch.channels_last))
        for a, b in zip(plain, other, strict=True):
            assert (a - b).abs().max() <= 1e-3 * a.abs().max()

    def test_an_empty_batch(self):
        assert build_ssd("test", width=NARROW)(torch.zeros(0, 3, 300, 300)).shape == (0, 21, 200, 5)


class TestBatchNorm:
    @pytest.fixture(scope="class")
    def unfused(self):
        torch.manual_seed(0)
        return with_lively_batch_norm(build_ssd("train", 300, 21, width=NARROW, batch_norm=True))

    @pytest.fixture(scope="class")
    def fused(self, unfused):
        torch.manual_seed(0)
        return with_lively_batch_norm(build_ssd("train", 300, 21, width=NARROW, batch_norm=True)).fuse()

    def test_there_is_one_behind_each_convolution_of_base_and_extras(self, unfused):
        assert sum(isinstance(module, nn.BatchNorm2d) for module in unfused.modules()) == 15 + 8

    def test_fused_computes_the_same(self, unfused, fused):
        with torch.no_grad():
            for a, b in zip(unfused.raw(noise(300)), fused.raw(noise(300)), strict=True):
                assert a.abs().max() > 0.1
                assert (a - b).abs().max() <= 1e-4 * a.abs().max()

    def test_fused_has_the_plain_layout(self, fused):
        assert shapes(fused) == shapes(without_data("train", width=NARROW))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert not fused.training

    def test_fusing_twice_changes_nothing(self, fused):
        before = {key: value.clone() for key, value in fused.state_dict().items()}
        after = fused.fuse().state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert before.keys() == after.keys()

    def test_a_plain_network_is_left_as_it_is(self):
        net = build_ssd("train", width=NARROW)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        assert net.fuse() is net
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class TestLoadWeights:
    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("ending", [".pth", ".pkl"])
    def test_state_dicts(self, tmp_path, prefix, wrapped, ending):
        source, net = build_ssd("train", width=NARROW), build_ssd("test", width=NARROW)
        state = {prefix + key: value for key, value in source.state_dict().items()}
        path = tmp_path / f"weights{ending}"
        torch.save({"state_dict": state} if wrapped else state, path)
        net.load_weights(path)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in source.state_dict().items())

    def test_another_ending_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"\.pth and \.pkl"):
            build_ssd("test", width=NARROW).load_weights(str(tmp_path / "weights.onnx"))

    def test_strictly(self, tmp_path):
        state = build_ssd("train", width=NARROW).state_dict()
        del state["loc.3.bias"]
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(RuntimeError, match=r"loc\.3\.bias"):
            build_ssd("test", width=NARROW).load_weights(tmp_path / "weights.pth")


class TestRefusals:
    @pytest.mark.parametrize("phase", ["eval", "Test", "", None])
    def test_phase(self, phase):
        with pytest.raises(ValueError, match="'train' or 'test'"):
            build_ssd(phase)

    @pytest.mark.parametrize("size", [0, 299, 321, "300", None])
    def test_size(self, size):
        with pytest.raises(ValueError, match=r"300.*512"):
            build_ssd("test", size)

    @pytest.mark.parametrize("num_classes", [1, 0, -3, 2.5, "21", None, True])
    def test_num_classes(self, num_classes):
        with pytest.raises(ValueError, match="2 or more"):
            build_ssd("test", 300, num_classes)

    @pytest.mark.parametrize("width", [0, -1, float("nan")])
    def test_width(self, width):
        with pytest.raises(ValueError, match="greater than 0"):
            build_ssd("test", width=width)

    @pytest.mark.parametrize("shape", [(1, 3, 512, 512), (3, 300, 300), (1, 300, 300, 3), (1, 1, 300, 300)])
    def test_pictures_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=r"\[batch, 3, 300, 300\]"):
            build_ssd("test", width=NARROW)(torch.zeros(shape))
