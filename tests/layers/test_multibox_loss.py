"""The loss: golden values, and the paper's equations in float64, one prior at a time."""

import golden_inputs
import numpy as np
import pytest
import slow_formulas as slow
import torch

from layers.box_utils import jaccard, point_form
from layers.modules import MultiBoxLoss

criterion = MultiBoxLoss(21, 0.5, True, 0, True, 3, 0.5, False, False)  # as the lineage's scripts write it


def test_golden(golden, priors300):
    """With the priors repeated, as DataParallel stacks them."""
    loc, conf, targets = golden_inputs.loss()
    loc.requires_grad_()
    conf.requires_grad_()
    loss_l, loss_c = criterion((loc, conf, priors300.repeat(2, 1)), targets)
    (loss_l + loss_c).backward()
    assert loss_l.item() == pytest.approx(float(golden["loss_l"]), rel=1e-5)
    assert loss_c.item() == pytest.approx(float(golden["loss_c"]), rel=1e-5)
    positive = torch.from_numpy(golden["match_conf"]) > 0
    np.testing.assert_allclose(loc.grad[positive].numpy(), golden["loss_grad_loc_positives"], rtol=1e-5, atol=1e-8)
    assert not loc.grad[~positive].any()
    selected = np.unpackbits(golden["loss_selected"])[: 4 * 8732].reshape(4, 8732).astype(bool)
    assert np.array_equal((conf.grad != 0).any(dim=-1).numpy(), selected)


@pytest.mark.parametrize("neg_pos", [1, 3, 10])
def test_few_priors_equal_the_formula(generator, neg_pos):
    """Compare the losses, and which priors count in the confidence loss.

    With many objects there are fewer negatives than may be mined; all of them count. Logits of the images lie far
    apart: the lineage's log-sum-exp, which subtracts the maximum of the batch, overflows.
    """
    priors = torch.rand(40, 4, generator=generator) * 0.4 + 0.3
    loc, conf, targets = golden_inputs.loss(3)
    loc, conf = loc[:, :40], conf[:, :40] + torch.tensor([60.0, -60.0, 0.0, 0.0])[:, None, None]
    loss = MultiBoxLoss(21, 0.3, neg_pos=neg_pos, variance=[0.3, 0.4])
    conf.requires_grad_()
    loss_l, loss_c = loss((loc, conf, priors), targets)
    loss_c.backward()
    sum_l = sum_c = positives = 0
    selected = torch.zeros(conf.shape[:2], dtype=torch.bool)
    for image, target in enumerate(targets):
        matched = slow.match(jaccard(target[:, :4], point_form(priors)).numpy(), 0.3)
        classes = [0 if truth < 0 else int(target[truth, 4]) + 1 for truth in matched]
        rows = conf[image].tolist()
        cost = [-np.log(slow.softmax(rows[prior])[class_]) for prior, class_ in enumerate(classes)]
        positive = [prior for prior, class_ in enumerate(classes) if class_]
        negative = sorted((prior for prior, class_ in enumerate(classes) if not class_), key=lambda prior: -cost[prior])
        chosen = positive + negative[: neg_pos * len(positive)]
        for prior in positive:
            offsets = slow.encode(target[matched[prior], :4].tolist(), priors[prior].tolist(), loss.variance)
            sum_l += slow.smooth_l1(loc[image, prior].tolist(), offsets)
        sum_c += sum(cost[prior] for prior in chosen)
        positives += len(positive)
        selected[image, chosen] = True
    assert loss_l.item() == pytest.approx(sum_l / positives, rel=1e-5)
    assert loss_c.item() == pytest.approx(sum_c / positives, rel=1e-5)
    assert torch.equal((conf.grad != 0).any(dim=-1), selected)


@pytest.mark.parametrize(
    "nothing", [torch.zeros(0, 5), torch.tensor([[0.4, 0.4, 0.4, 0.6, 2], [0.9, 0.9, 0.8, 0.8, 1]])]
)
def test_images_without_objects(priors300, nothing):
    """No objects, or none that has an area: they add nothing, alone or beside other objects."""
    loc, conf, targets = golden_inputs.loss(5)
    alone = torch.tensor(criterion((loc[:1], conf[:1], priors300), targets[:1]))
    both = torch.tensor(criterion((loc[:2], conf[:2], priors300), [torch.cat([targets[0], nothing]), nothing]))
    torch.testing.assert_close(both, alone, rtol=1e-6, atol=0)
    losses = criterion((loc.requires_grad_(), conf.requires_grad_(), priors300), [nothing] * 4)
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()
    assert not loc.grad.any()
    assert not conf.grad.any()


def test_infinity_at_priors_that_do_not_count(priors300):
    loc, conf, targets = golden_inputs.loss(9)
    unmatched = int((criterion.match_targets(targets, priors300)[1][0] == 0).nonzero()[0])
    conf[0, unmatched, 0] = 1e4  # sure of the background: never mined
    expected = criterion((loc, conf, priors300), targets)
    loc[0, unmatched] = torch.inf
    assert criterion((loc, conf, priors300), targets) == expected


def test_bfloat16_predictions(priors300):
    """The loss is computed in float32 whatever the network ran in; the gradient has the network's dtype."""
    loc, conf, targets = golden_inputs.loss(10)
    loc, conf = loc.bfloat16().requires_grad_(), conf.bfloat16().requires_grad_()
    losses = criterion((loc, conf, priors300), targets)
    assert losses == criterion((loc.float(), conf.float(), priors300), targets)
    assert all(loss.dtype == torch.float32 for loss in losses)
    sum(losses).backward()
    assert loc.grad.dtype == conf.grad.dtype == torch.bfloat16


def test_the_lineages_attributes():
    loss = MultiBoxLoss(21, 0.4, False, 1, False, 2, 0.3, True, False, variance=[0.3, 0.4])
    names = "num_classes threshold use_prior_for_matching background_label do_neg_mining"
    assert [getattr(loss, name) for name in names.split()] == [21, 0.4, False, 1, False]
    names = "negpos_ratio neg_overlap encode_target use_gpu variance"
    assert [getattr(loss, name) for name in names.split()] == [2, 0.3, True, False, (0.3, 0.4)]
