"""The state of a run, of crop training, and the log, where somebody else wrote them: used, or refused by name."""

import csv
from argparse import Namespace
from copy import deepcopy

import pytest
import torch

from data.config import voc
from training import crops, run_state
from training.log import COLUMNS, _open_table, draw_curves
from training.network import averaged, build_network, build_optimizer, load_fitting, tensors_in
from utils.errors import InputError

ARGUMENTS = Namespace(
    basenet="none", finetune=None, width=1 / 16, optimizer="adamw", lr=1e-3, weight_decay=5e-4, momentum=0.9,
    caffe_bias=False, keep=3,
)  # fmt: skip
LOG = {"iteration": 2, "unscored": False, "sums": [1.0, 2.0, 30.0], "count": 2}


def make_run(folder, **changes):
    """A run after one step, as run_state takes it."""
    args = Namespace(**{**vars(ARGUMENTS), **changes})
    torch.manual_seed(0)
    net = build_network(args, voc, 3, lambda line: None)
    optimizer = build_optimizer(net, args, torch.device("cpu"))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Namespace(
        net=net, average=averaged(net, 0.99), optimizer=optimizer, scaler=scaler, folder=folder, args=args, best=0.25
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made = make_run(folder)
    run_state.save(made, 2, LOG)
    return made


def load(run, path):
    return run_state.load(path, run.net, run.average, run.optimizer, run.scaler)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}], ids=str)
def test_a_run_s_own_state_comes_back(tmp_path, changes):
    run, other = make_run(tmp_path, **changes), make_run(tmp_path, **changes)
    run_state.save(run, 2, LOG)
    assert load(other, tmp_path / "state_2.pth") == (2, LOG, 0.25)
    for ours, theirs in zip(run.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(value is None or torch.equal(value, theirs[name]) for name, value in ours.items())


def put(state, path, value):
    """A copy of a tree with the value at a path of keys replaced."""
    state = deepcopy(state)
    *way, last = path
    node = state
    for key in way:
        node = node[key]
    node[last] = value
    return state


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["iteration"], "2"),
        (["iteration"], -1),
        (["iteration"], True),
        (["iteration"], 10**400),
        (["best"], "high"),
        (["best"], None),
        (["best"], 10**400),
        (["log"], []),
        (["log"], {}),
        (["log"], torch.zeros(3)),
        (["log", "sums"], [1.0, 2.0]),
        (["log", "sums"], ["a", "b", "c"]),
        (["log", "count"], None),
        (["log", "iteration"], None),
        (["model"], []),
        (["optimizer"], {"param_groups": [], "state": {}}),
        (["optimizer", "param_groups", 0, "lr"], "fast"),
        (["optimizer", "param_groups", 0, "lr_factor"], None),
        (["optimizer", "param_groups", 0, "betas"], (0.9,)),
        (["optimizer", "param_groups", 0, "weight_decay"], float("nan")),
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(3)),
        (["optimizer", "state", 0, "exp_avg"], None),
        (["optimizer", "state", 0, "step"], "once"),
        (["optimizer", "state", 0, "step"], torch.tensor(1j)),
        (["optimizer", "state", 0], {"step": torch.tensor(1.0)}),
        (["rng"], torch.zeros(3, dtype=torch.uint8)),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_a_state_that_no_run_wrote_is_refused(run, tmp_path, path, value):
    state = torch.load(run.folder / "state_2.pth", weights_only=True)
    torch.save(put(state, path, value), tmp_path / "state_2.pth")
    with pytest.raises(InputError, match=r"state_2\.pth: the state of another network or run"):
        load(run, tmp_path / "state_2.pth")


def test_a_moment_that_is_no_plain_tensor_is_refused(run, tmp_path):
    state = torch.load(run.folder / "state_2.pth", weights_only=True)
    sparse = state["optimizer"]["state"][0]["exp_avg"].to_sparse()
    torch.save(put(state, ["optimizer", "state", 0, "exp_avg"], sparse), tmp_path / "state_2.pth")
    with pytest.raises(InputError, match=r"state_2\.pth: the state of another network or run"):
        load(run, tmp_path / "state_2.pth")


def test_moments_on_a_gpu_are_plain():
    """Where the weights are on one, so are the moments by the time they are looked at."""

    class OnGPU(torch.Tensor):
        device = property(lambda self: torch.device("cuda"))

    moment = torch.zeros(3).as_subclass(OnGPU)
    assert moment.device.type == "cuda"
    assert run_state._fits(torch.zeros(3), "exp_avg", moment)


def test_how_a_step_is_computed_is_not_taken_from_the_file(run, tmp_path):
    """A file could ask for moments that it doesn't hold, or, from a GPU, for steps that only a GPU makes."""
    state = torch.load(run.folder / "state_2.pth", weights_only=True)
    group = {**state["optimizer"]["param_groups"][0], "amsgrad": True, "capturable": True}
    torch.save(put(state, ["optimizer", "param_groups", 0], group), tmp_path / "state_2.pth")
    load(run, tmp_path / "state_2.pth")
    run.optimizer.step()


def test_how_a_step_is_computed_is_known_while_loading():
    """torch brings a fused optimizer's count of steps onto the GPU only then; a CPU's state says it isn't fused."""
    seen = []

    class Optimizer(torch.optim.AdamW):
        def load_state_dict(self, state):
            seen.extend(group["fused"] for group in state["param_groups"])
            super().load_state_dict(state)

    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    plain = torch.optim.AdamW([parameter])
    plain.step()
    run_state.load_optimizer(Optimizer([parameter], fused=True), plain.state_dict())
    assert seen == [True]


@pytest.mark.parametrize(
    ("path", "value"),
    [(["passes"], "1"), (["passes"], None), (["passes"], -1), (["optimizer", "param_groups", 0, "betas"], "xy")],
    ids=str,
)
def test_a_state_of_crop_training_that_no_run_wrote_is_refused(run, tmp_path, path, value):
    model = crops.CropClassifier(run.net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "passes": 1}
    torch.save(state, tmp_path / "crops.pth")
    assert crops._load_state(tmp_path / "crops.pth", model, optimizer) == 1
    torch.save(put(state, path, value), tmp_path / "crops.pth")
    with pytest.raises(InputError, match=r"crops\.pth: of another network"):
        crops._load_state(tmp_path / "crops.pth", model, optimizer)


def test_rows_of_a_log_that_are_no_numbers_are_passed_over(tmp_path):
    good, path = "1,1e-05,2.500000,3.500000,9.000,,0.5000", tmp_path / "log.csv"
    bad = ["²,1,1,1,1,,1", "2,x,1,1,1,,1", "2,1", "3,1,1,1,1,,\0", "9" * 5000 + ",1,1,1,1,,1", '2,"1', "\udcff,,,,,,"]
    text = "\r\n".join([",".join(COLUMNS), *bad, good, ""])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    _open_table(path, 5)[0].close()
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [list(COLUMNS), good.split(",")]
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_what_is_no_weight_is_initialised_anew(run, tmp_path):
    """Of the right shape, and still nothing to start from: sparse, complex, on no device at all."""
    state = run.net.state_dict()
    key = "vgg.0.conv.bias" if "vgg.0.conv.bias" in state else next(key for key in state if state[key].dim() == 1)
    for strange in (state[key].to_sparse(), state[key].to(torch.complex64), state[key].to("meta")):
        torch.save({**state, key: strange}, tmp_path / "a.pth")
        lines = []
        load_fitting(run.net, tmp_path / "a.pth", lines.append)
        assert f"loaded {len(state) - 1} tensors" in lines[-1]
    assert tensors_in({"state_dict": {"state_dict": torch.zeros(3)}}) == {"state_dict": pytest.approx(torch.zeros(3))}
