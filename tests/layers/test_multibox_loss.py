"""The loss: golden values, and the paper's equations in float64, one prior at a time."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch

from layers.box_utils import jaccard, point_form
from layers.modules import MultiBoxLoss


def criterion(classes=21):
    """In the form in which the lineage's scripts call it."""
    return MultiBoxLoss(classes, 0.5, True, 0, True, 3, 0.5, False, False)


def loss_by_hand(loc, conf, priors, targets, neg_pos=3):
    """(loss_l, loss_c, selected): selected is a set of (picture, prior) that count in the confidence loss."""
    loc, conf, priors_as_rows = loc.tolist(), conf.double().numpy(), priors.tolist()
    sum_l = sum_c = positives = 0
    selected = set()
    for picture, target in enumerate(targets):
        overlaps = jaccard(target[:, :4], point_form(priors)).numpy()
        matched = slow.match(overlaps, 0.5) if len(target) else [-1] * len(priors)
        positive = [prior for prior, truth in enumerate(matched) if truth >= 0]
        classes = [0 if truth < 0 else int(target[truth, 4]) + 1 for truth in matched]
        cost = [-np.log(slow.softmax(conf[picture, prior])[classes[prior]]) for prior in range(len(priors))]
        negatives = sorted((prior for prior, truth in enumerate(matched) if truth < 0), key=lambda prior: -cost[prior])
        chosen = positive + negatives[: neg_pos * len(positive)]
        for prior in positive:
            offsets = slow.encode(target[matched[prior], :4].tolist(), priors_as_rows[prior])
            sum_l += slow.smooth_l1(loc[picture][prior], offsets)
        sum_c += sum(cost[prior] for prior in chosen)
        positives += len(positive)
        selected |= {(picture, prior) for prior in chosen}
    return sum_l / max(positives, 1), sum_c / max(positives, 1), selected


@pytest.fixture(scope="module")
def golden_result(priors300):
    """(loss_l, loss_c, gradient of loc, gradient of conf) of the golden input."""
    loc, conf, targets = golden_inputs.loss()
    loc.requires_grad_()
    conf.requires_grad_()
    loss_l, loss_c = criterion()((loc, conf, priors300), targets)
    (loss_l + loss_c).backward()
    return loss_l.item(), loss_c.item(), loc.grad, conf.grad


class TestGolden:
    def test_losses(self, golden, golden_result):
        assert golden_result[0] == pytest.approx(float(golden["loss_l"]), rel=1e-5)
        assert golden_result[1] == pytest.approx(float(golden["loss_c"]), rel=1e-5)

    def test_gradient_of_the_offsets(self, golden, golden_result):
        positive = torch.from_numpy(golden["match_conf"]) > 0
        gradient = golden_result[2]
        np.testing.assert_allclose(gradient[positive].numpy(), golden["loss_grad_loc_positives"], rtol=1e-5, atol=1e-8)
        assert not gradient[~positive].any()

    def test_priors_that_count(self, golden, golden_result):
        selected = np.unpackbits(golden["loss_selected"])[: 4 * 8732].reshape(4, 8732).astype(bool)
        assert np.array_equal((golden_result[3] != 0).any(dim=-1).numpy(), selected)


class TestAgainstTheFormula:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_other_seeds(self, priors300, seed):
        loc, conf, targets = golden_inputs.loss(seed)
        conf.requires_grad_()
        loss_l, loss_c = criterion()((loc, conf, priors300), targets)
        loss_c.backward()
        expected_l, expected_c, selected = loss_by_hand(loc, conf.detach(), priors300, targets)
        assert loss_l.item() == pytest.approx(expected_l, rel=1e-5)
        assert loss_c.item() == pytest.approx(expected_c, rel=1e-5)
        assert {tuple(pair) for pair in (conf.grad != 0).any(dim=-1).nonzero().tolist()} == selected

    @pytest.mark.parametrize("neg_pos", [1, 3, 10])
    def test_few_priors(self, generator, neg_pos):
        """With many objects to few priors there aren't negatives enough; all that there are count."""
        priors = torch.rand(40, 4, generator=generator) * 0.4 + 0.3
        corner = torch.rand(3, 5, 2, generator=generator) * 0.5
        size = torch.rand(3, 5, 2, generator=generator) * 0.4 + 0.05
        labels = torch.randint(0, 4, (3, 5, 1), generator=generator).float()
        targets = list(torch.cat([corner, corner + size, labels], dim=-1))
        loc, conf = torch.randn(3, 40, 4, generator=generator), torch.randn(3, 40, 5, generator=generator)
        conf.requires_grad_()
        loss_l, loss_c = MultiBoxLoss(5, 0.5, neg_pos=neg_pos)((loc, conf, priors), targets)
        loss_c.backward()
        expected_l, expected_c, selected = loss_by_hand(loc, conf.detach(), priors, targets, neg_pos)
        assert loss_l.item() == pytest.approx(expected_l, rel=1e-5)
        assert loss_c.item() == pytest.approx(expected_c, rel=1e-5)
        assert {tuple(pair) for pair in (conf.grad != 0).any(dim=-1).nonzero().tolist()} == selected

    def test_objects_that_share_a_best_prior_both_count(self, priors300):
        """Two equal boxes of two classes, too small for an overlap of 0.5 with any prior."""
        box = [0.5, 0.5, 0.52, 0.52]
        target = torch.tensor([[*box, 3.0], [*box, 7.0]])
        _, conf_t = criterion().match_targets([target], priors300)
        assert sorted(conf_t[conf_t > 0].tolist()) == [4, 8]

    def test_variance(self, priors300):
        target = torch.tensor([[0.2, 0.2, 0.6, 0.7, 0.0]])
        conf = torch.zeros(1, 8732, 21)
        for variance in ((0.1, 0.2), (0.5, 0.4)):
            loss = MultiBoxLoss(21, variance=variance)
            loc_t, conf_t = loss.match_targets([target], priors300)
            prior = int(conf_t[0].nonzero()[0])
            expected = slow.encode(target[0, :4].tolist(), priors300[prior].tolist(), variance)
            assert loc_t[0, prior].tolist() == pytest.approx(expected, abs=1e-4)
            assert loss((loc_t, conf, priors300), [target])[0].item() == 0


class TestEdges:
    def test_a_batch_is_the_weighted_mean_of_its_singles(self, priors300):
        """Each picture mines for itself; only N is shared."""
        loc, conf, targets = golden_inputs.loss(4)
        positives = (criterion().match_targets(targets, priors300)[1] > 0).sum(dim=1)
        assert len(set(positives.tolist())) > 1
        singles = torch.tensor(
            [criterion()((loc[i : i + 1], conf[i : i + 1], priors300), targets[i : i + 1]) for i in range(4)]
        )
        together = torch.tensor(criterion()((loc, conf, priors300), targets))
        torch.testing.assert_close(together, (singles * positives[:, None]).sum(0) / positives.sum(), rtol=1e-5, atol=0)

    def test_pictures_without_objects_add_nothing(self, priors300):
        loc, conf, targets = golden_inputs.loss(5)
        alone = criterion()((loc[:1], conf[:1], priors300), targets[:1])
        empty = torch.zeros(0, 5)
        for order in ([targets[0], empty], [empty, targets[0]]):
            place = [0, 1] if order[1] is empty else [1, 0]
            both = criterion()((loc[place], conf[place], priors300), order)
            assert torch.tensor(both).tolist() == pytest.approx(torch.tensor(alone).tolist(), rel=1e-6)

    @pytest.mark.parametrize(
        "target", [torch.zeros(0, 5), torch.tensor([[0.4, 0.4, 0.4, 0.6, 2.0], [0.9, 0.9, 0.8, 0.8, 1.0]])]
    )
    def test_a_batch_without_positives(self, priors300, target):
        """No objects at all, or none that has an area."""
        loc, conf, _ = golden_inputs.loss(6)
        loc.requires_grad_()
        conf.requires_grad_()
        loss_l, loss_c = criterion()((loc, conf, priors300), [target] * 4)
        assert (loss_l.item(), loss_c.item()) == (0, 0)
        (loss_l + loss_c).backward()
        assert torch.equal(loc.grad, torch.zeros_like(loc))
        assert torch.equal(conf.grad, torch.zeros_like(conf))

    def test_degenerate_objects_do_not_disturb_the_others(self, priors300):
        loc, conf, targets = golden_inputs.loss(7)
        spoilt = [torch.cat([target, torch.tensor([[0.5, 0.5, 0.5, 0.9, 4.0]])]) for target in targets]
        expected = torch.tensor(criterion()((loc, conf, priors300), targets))
        assert torch.equal(torch.tensor(criterion()((loc, conf, priors300), spoilt)), expected)

    def test_large_logits_do_not_overflow(self, priors300):
        """The lineage's log-sum-exp subtracts the maximum of the batch; rows far below it become infinite there."""
        loc, conf, targets = golden_inputs.loss(8)
        conf = conf.clone()
        conf[0] += 500
        conf[1] -= 500
        shifted = criterion()((loc, conf, priors300), targets)[1]
        plain = criterion()((loc, golden_inputs.loss(8)[1], priors300), targets)[1]
        assert shifted.item() == pytest.approx(plain.item(), rel=1e-3)

    def test_infinity_in_a_row_that_does_not_count(self, priors300):
        loc, conf, targets = golden_inputs.loss(9)
        unmatched = int((criterion().match_targets(targets, priors300)[1][0] == 0).nonzero()[0])
        expected = criterion()((loc, conf, priors300), targets)[0].item()
        loc[0, unmatched] = float("inf")
        assert criterion()((loc, conf, priors300), targets)[0].item() == expected

    def test_bfloat16_predictions(self, priors300):
        """The loss is computed in float32 whatever the network ran in; the gradient goes back in its dtype."""
        loc, conf, targets = golden_inputs.loss(10)
        loc, conf = loc.bfloat16().requires_grad_(), conf.bfloat16().requires_grad_()
        losses = criterion()((loc, conf, priors300.bfloat16().float()), targets)
        exact = criterion()((loc.detach().float(), conf.detach().float(), priors300.bfloat16().float()), targets)
        assert all(loss.dtype == torch.float32 for loss in losses)
        assert [loss.item() for loss in losses] == [loss.item() for loss in exact]
        sum(losses).backward()
        assert loc.grad.dtype == torch.bfloat16
        assert loc.grad.any()

    def test_priors_repeated_by_data_parallel(self, priors300):
        """DataParallel stacks the priors of its replicas."""
        loc, conf, targets = golden_inputs.loss(11)
        once = criterion()((loc, conf, priors300), targets)
        assert criterion()((loc, conf, priors300.repeat(2, 1)), targets) == once

    def test_a_class_beyond_the_last_is_refused(self, priors300):
        loc, conf, _ = golden_inputs.loss()
        with pytest.raises((ValueError, IndexError)):
            criterion()((loc, conf, priors300), [torch.tensor([[0.1, 0.1, 0.5, 0.5, 20.0]])] * 4)
