"""Several processes together compute what one would."""

import csv
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from synthetic import make_voc

from layers.modules import MultiBoxLoss
from layers.modules.multibox_loss import matched_priors
from ssd import build_ssd
from train import get_args_parser, main
from training.distributed import Ranks, any_rank, join
from training.low_resolution import priors_at
from training.network import Heads
from training.samples import RunBatches
from utils.errors import InputError
from weights.checkpoint import CheckpointInfo, save_checkpoint

SIZE = 100  # of the input: all that matters here happens at any


def make_network():
    torch.manual_seed(0)
    return build_ssd("train", width=0.1).double()


def make_batch(empty):
    """Eight pictures and their targets; `empty` of the last four have no objects."""
    random = np.random.RandomState(0)
    images = torch.from_numpy(random.uniform(-100, 100, (8, 3, SIZE, SIZE)))
    targets = []
    for picture in range(8):
        count = 0 if picture >= 8 - empty else random.randint(1, 4)
        corner, side = random.uniform(0, 0.5, (count, 2)), random.uniform(0.2, 0.5, (count, 2))
        targets.append(torch.from_numpy(np.hstack([corner, corner + side, random.randint(0, 20, (count, 1))])))
    return images, targets


def backward(heads, net, images, targets):
    criterion = MultiBoxLoss(net.num_classes)
    loc_t, conf_t = criterion.match_targets(targets, priors_at(net, SIZE).double())
    loss_l, loss_c = criterion.sums(*heads(images), loc_t, conf_t)
    ((loss_l + loss_c) / matched_priors(conf_t)).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


def one_rank(rank, port, folder, empty):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    net = make_network()
    heads = torch.nn.parallel.DistributedDataParallel(Heads(net), find_unused_parameters=True)
    images, targets = make_batch(empty)
    share = slice(4 * rank, 4 * rank + 4)
    gradients = backward(heads, net, images[share], targets[share])
    assert any_rank(rank == 1, torch.device("cpu"))
    assert not any_rank(False, torch.device("cpu"))
    torch.save(gradients, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("empty", [0, 4], ids=["objects everywhere", "no positives on the second rank"])
def test_two_ranks_have_the_gradients_of_one_process(tmp_path, empty):
    mp.spawn(one_rank, (free_port(), str(tmp_path), empty), nprocs=2)
    net = make_network()
    alone = backward(Heads(net), net, *make_batch(empty))
    assert len(alone) > 30
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        for name, gradient in alone.items():
            assert (together[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def train_on_a_rank(rank, port, flags):
    """What torchrun does for a process."""
    job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in job.items()})
    torch.set_num_threads(1)
    main(get_args_parser().parse_args(flags))


@pytest.mark.slow
def test_the_log_of_two_ranks_is_that_of_one_process(tmp_path, monkeypatch):
    """Their shares are as unlike as can be: one picture has three objects, the others have none or a small one."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    dog = ("dog", (5, 5, 12, 14), 0)
    objects = {"many": [("dog", (0, 0, 60, 75), 0), ("dog", (30, 10, 99, 60), 0), ("dog", (20, 5, 80, 79), 0)]}
    folder = make_voc(tmp_path / "pictures", {**objects, "one": [dog], "other": [dog], "none": []}, split="train")
    torch.manual_seed(0)
    start = tmp_path / "start.pth"
    save_checkpoint(start, build_ssd("train", num_classes=2, width=0.05), CheckpointInfo(width=0.05))
    flags = (
        f"--dataset {folder} --finetune {start} --width 0.05 --batch_size 4 --max_iter 3 --print_every 1 --warmup 0 "
        f"--lr 0.0001 --device cpu --precision float32 --num_workers 0 --skip_check --save_folder {tmp_path}/"
    )
    mp.spawn(train_on_a_rank, (free_port(), f"{flags}two".split()), nprocs=2)
    try:
        main(get_args_parser().parse_args(f"{flags}one".split()))
    finally:
        torch.set_flush_denormal(False)  # a run turns denormals off, which other tests shouldn't notice
    rows = [list(csv.DictReader((tmp_path / name / "log.csv").open(newline=""))) for name in ("one", "two")]
    assert [len(table) for table in rows] == [3, 3]
    for alone, together in zip(*rows, strict=True):
        assert alone["positives"] == together["positives"]
        for name in ("loss_l", "loss_c"):
            assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-3)


def test_the_ranks_shares_make_up_the_batch():
    shares = [list(RunBatches(3, 6, 8, rank, 2)) for rank in (0, 1)]
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == list(RunBatches(3, 6, 8))


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="multiple of their 3"):
        join(torch.device("cpu"), 32)


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(torch.device("cpu"), 32) == Ranks(0, 0, 1)
