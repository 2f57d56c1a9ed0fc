"""A CUDA device without values, for machines without CUDA: what runs on it is checked, not computed."""

from contextlib import contextmanager
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from data import transforms

CUDA = torch.device("cuda", 0)
DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
STAND_INS = {  # what such an operation returns if it is allowed: 7 places, 5 boxes, 1, true
    "nonzero": lambda x: torch.zeros(7, x.dim(), dtype=torch.int64, device=x.device),
    "nms": lambda boxes, *_: torch.arange(5, device=boxes.device),
    "_local_scalar_dense": lambda x: 1,
    "equal": lambda *_: True,
}


class FakeCuda(FakeTensorMode):
    """Tensors with a device, a shape and a dtype, but without values. One on the wrong device raises, as on CUDA; an
    operation that makes the host wait for the device raises unless `allowing` names it.
    """

    avoid_device_init = True  # FakeTensorMode would start CUDA, since is_available is patched
    allowed, waits = (), []

    @contextmanager
    def allowing(self, *names):
        """Within it, these operations may make the host wait; yields the list of those that do."""
        self.allowed, self.waits = names, []
        yield self.waits
        self.allowed = ()

    def __deepcopy__(self, memo):
        return self  # a copied tensor stays in its mode

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:  # composite operations, such as `to`, arrive as a whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = func._schema.name.rpartition("::")[2]
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if host_waits(name, func.tags, devices, args, kwargs):
            if name not in self.allowed:
                raise AssertionError(f"{func} makes the host wait for the device")
            self.waits.append(name)
            if name in STAND_INS:
                with self:
                    return STAND_INS[name](*args)
        if name.startswith("_fused_"):
            return check_fused_optimizer(args, devices)
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.fake_tensor_converter.tensor_memo.clear()  # Module.to refuses tensors with weak references


def host_waits(name, tags, devices, args, kwargs):
    """Return whether an operation needs values of a CUDA tensor on the host, or copies without non_blocking."""
    if name in ("_to_copy", "copy_"):
        source = args[name == "copy_"].device.type
        target = args[0].device.type if name == "copy_" else torch.device(kwargs.get("device") or source).type
        queued = target == "cuda" and (kwargs.get("non_blocking") or args[2:3] == (True,))
        return source != target and not queued
    if "cuda" not in devices:
        return False
    if "index" in name and isinstance(args[1], list | tuple):  # a mask becomes places; an index on the CPU is copied
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        return any(index.dtype in (torch.bool, torch.uint8) or not index.is_cuda for index in indices)
    return name == "nms" or bool(DEPENDS_ON_VALUES & set(tags))


def check_fused_optimizer(args, devices):
    """Check what the fused kernels ask of their lists (parameters, gradients, moments, ...): SGD's has no fake."""
    assert devices == {"cuda"}
    for tensors in zip(*filter(None, args), strict=True):  # of a parameter; AdamW's count of steps is a scalar
        assert len({(tensor.dtype, tensor.stride()) for tensor in tensors if tensor.dim()}) == 1


def backward(loss):
    """`loss.backward()` as a walk over the graph: autograd's engine asks the driver for its streams."""
    nodes, gradients = [loss.grad_fn], {loss.grad_fn: [torch.ones_like(loss)]}
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None and following not in gradients:
                gradients[following] = [None] * len(following._input_metadata)
                nodes.append(following)
    # Later operations first; parameters, which end the graph, last.
    nodes.sort(key=lambda node: -node._sequence_nr() if node.next_functions else 1)
    with torch.no_grad():
        for node in nodes:
            results = node(*gradients.pop(node))
            results = results if isinstance(results, tuple) else (results,)
            for (following, number), result in zip(node.next_functions, results, strict=False):
                if following is not None and result is not None:
                    form, earlier = following._input_metadata[number], gradients[following][number]
                    gradient = result.sum_to_size(form.shape).to(form.dtype)  # after broadcasting, as the engine does
                    gradients[following][number] = gradient if earlier is None else earlier + gradient


@contextmanager
def rehearsal(monkeypatch):
    """FakeCuda on a machine whose driver reports two devices."""
    monkeypatch.setattr(transforms, "_means_on", lru_cache(transforms._means_on.__wrapped__))  # fakes must not stay
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # else autocast and GradScaler turn themselves off
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)  # autocast and choose_precision ask
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # choose_device asks
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # choose_device asks
    # PyTorch 2.11 would start CUDA, and AdamW ask its driver.
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with FakeCuda() as cuda:
        yield cuda
