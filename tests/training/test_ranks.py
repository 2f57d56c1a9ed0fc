"""Several processes together compute what one would."""

import os
import socket
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from checks import refused
from fake_cuda import rehearsal
from synthetic import make_voc
from test_engine import make_batch, make_trainer
from test_train import BASE, OBJECTS, log_of, train
from tiny import lively_checkpoint

from data.transforms import to_input
from ssd import build_ssd
from train import check_batch
from training.distributed import Ranks, join
from utils.errors import InputError


def step(ranks, accumulate, empty):
    """The weights after one step, and the losses."""
    torch.manual_seed(0)
    net = build_ssd("train", width=0.05)
    share = slice(4 * ranks.rank // ranks.world, 4 * (ranks.rank + 1) // ranks.world)
    batch = [tensor[share] for tensor in make_batch(net, empty)]
    losses = make_trainer(net, ranks, accumulate=accumulate).step(batch, 1e-3, 0)
    return {"losses": losses, **net.state_dict()}


def be_a_rank(rank, port):
    """What torchrun does for a process."""
    job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in job.items()})
    torch.set_num_threads(1)


def step_on_a_rank(rank, port, folder, accumulate, empty):
    be_a_rank(rank, port)
    with join("cpu") as (ranks, _):
        assert ranks.any(rank == 1)
        assert not ranks.any(False)
        assert ranks.gather([f"{rank}.{n}" for n in range(2 - rank)]) == ["0.0", "1.0", "0.1"]
        torch.save(step(ranks, accumulate, empty), f"{folder}/{rank}.pth")
        ranks.wait()


def train_on_a_rank(rank, port, *arguments):
    be_a_rank(rank, port)
    train(*arguments)


def spawn(function, *arguments):
    """Run a function on two ranks."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    mp.spawn(function, (port, *arguments), nprocs=2)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "empty"), [(1, 0), (2, 0), (1, 2)])
def test_two_ranks_take_the_step_of_one_process(tmp_path, accumulate, empty):
    """Also in parts, and without any positive on the second rank."""
    spawn(step_on_a_rank, str(tmp_path), accumulate, empty)
    alone = step(Ranks(), 1, empty)
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_log_of_two_ranks_is_that_of_one_process(tmp_path):
    folder = make_voc(tmp_path / "images", OBJECTS, split="train")
    start = lively_checkpoint(tmp_path / "start.pth")
    flags = f"--finetune {start} --batch_size 4 --max_iter 3 --print_every 1 --warmup 0 --lr 0.0001"
    spawn(train_on_a_rank, folder, tmp_path / "two", flags, BASE)
    train(folder, tmp_path / "one", flags, BASE)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == 3
    for alone, together in zip(one, two, strict=True):
        assert alone["positives"] == together["positives"]
        for name in ("loss_l", "loss_c"):
            assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-3)


@pytest.mark.parametrize("local", [0, 1])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_rank_takes_the_device_of_its_local_number(monkeypatch, local, name):
    """On the second of two machines. The device is set before NCCL starts, which would take the first one."""
    calls = []
    for key, value in {"RANK": 2 + local, "LOCAL_RANK": local, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(dist, "init_process_group", lambda *backend, timeout: calls.append((*backend, timeout)))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: (backend, timeout))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    with join(name) as (ranks, device):
        assert device == torch.device("cuda", local)
        assert (ranks.rank, ranks.local, ranks.world) == (2 + local, local, 4)
        # The host may have to wait for a validation on rank 0.
        assert ranks.control == ("gloo", timedelta(days=7))
    assert calls == [device, ("nccl", timedelta(minutes=10)), "left"]
    with pytest.raises(InputError, match="share one device"), join(f"cuda:{1 - local}"):
        pass


@pytest.mark.parametrize("local", [0, 1])
def test_a_rank_trains_on_its_device(monkeypatch, local):
    """DistributedDataParallel is given the device and averages once for each batch; nothing waits for the device."""
    calls, device = [], torch.device("cuda", local)

    class Parallel(torch.nn.Module):
        def __init__(self, module, device_ids):
            super().__init__()
            self.forward = module.forward
            calls.append(device_ids)

        @contextmanager
        def no_sync(self):
            calls.append("no_sync")
            yield

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Parallel)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: calls.append(tensor.device))
    with rehearsal(monkeypatch) as cuda:
        with cuda.allowing("_to_copy"):
            net = build_ssd("train", width=0.05).to(device)
            net_input = to_input(torch.empty(1, 300, 300, 3, dtype=torch.uint8, device=device))
        settings = {"precision": torch.float16, "accumulate": 3, "clip_grad": 1.0}
        trainer = make_trainer(net, Ranks(2 + local, local, 4), **settings)
        with device:
            images, loc_t = torch.empty(4, 300, 300, 3, dtype=torch.uint8), torch.empty(4, 8732, 4)
            losses = trainer.step((images, loc_t, torch.empty(4, 8732, dtype=torch.int64)), 1e-3, 0)
    assert losses.device == net_input.device == device
    # The matched priors before the first part, the losses behind the last.
    assert calls == [[local], device, "no_sync", "no_sync", device]


def test_what_the_host_has_to_know_goes_over_gloo(monkeypatch):
    """On NCCL's group it would wait for the device, and give up after its timeout."""
    groups = []

    def gather(shares, share, group):
        groups.append(group)
        shares[:] = [share, ["1.0"]]

    monkeypatch.setattr(dist, "all_reduce", lambda flag, group: groups.append((flag.device.type, group)))
    monkeypatch.setattr(dist, "barrier", lambda *, group: groups.append(group))
    monkeypatch.setattr(dist, "all_gather_object", gather)
    ranks = Ranks(0, 0, 2, "control")
    assert ranks.any(True)
    ranks.wait()
    assert ranks.gather(["0.0"]) == ["0.0", "1.0"]
    assert groups == [("cpu", "control"), "control", "control"]


def test_a_batch_that_cannot_be_shared():
    check_batch(8, 2, 2, batch_norm=True)
    refused("multiple of the 3", check_batch, 32, 1, 3, batch_norm=False)
    refused(": 1 images per part and process, but BatchNorm needs 2", check_batch, 8, 4, 2, batch_norm=True)
