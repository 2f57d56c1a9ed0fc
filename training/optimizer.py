"""The optimizer, and the learning rate as a pure function of the iteration: a resumed run continues exactly."""

import math

import torch


def build_optimizer(net, name, lr, momentum=0.9, weight_decay=5e-4, caffe_bias=False):
    """Build SGD as in the paper (section 3) or AdamW, with three parameter groups.

    AdamW doesn't decay biases and normalization. Each group has an `lr_factor`, which multiplies the learning rate.

    Args:
        net: an SSD; frozen parameters are left out. On CUDA, fused kernels are used.
        name: "sgd" or "adamw".
        lr: initial learning rate.
        momentum: of SGD.
        weight_decay: of the weights.
        caffe_bias: biases get twice the learning rate and no decay, as in the paper's Caffe code.
    """
    learning = [(key.endswith(".bias"), p) for key, p in net.named_parameters() if p.requires_grad]
    biases = [p for is_bias, p in learning if is_bias]
    scales = [p for is_bias, p in learning if not is_bias and p.dim() <= 1]  # L2Norm and BatchNorm
    weights = [p for is_bias, p in learning if not is_bias and p.dim() > 1]
    adamw = name == "adamw"
    bias_decay = 0.0 if adamw or caffe_bias else weight_decay
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": scales, "weight_decay": 0.0 if adamw else weight_decay, "lr_factor": 1.0},
        {"params": biases, "weight_decay": bias_decay, "lr_factor": 2.0 if caffe_bias else 1.0},
    ]
    fused = net.priors.is_cuda
    if adamw:
        return torch.optim.AdamW(groups, lr, fused=fused)
    return torch.optim.SGD(groups, lr, momentum=momentum, fused=fused)


def set_learning_rate(optimizer, rate):
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def load_moments(optimizer, stored):
    """Load the moments of an optimizer's state dict, but not its settings.

    The run may have been saved on another device. Moments are copied into the memory layout of their parameter, which
    fused optimizers need.

    Raises:
        ValueError, TypeError, LookupError or AttributeError: the moments don't match the parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    adamw = isinstance(optimizer, torch.optim.AdamW)
    names = {"step", "exp_avg", "exp_avg_sq"} if adamw else {"momentum_buffer"}
    for index, moments in stored["state"].items():
        parameter = parameters[index]
        if moments.keys() != names:
            raise ValueError(f"expected the moments {sorted(names)}")
        own = {}
        for name, value in moments.items():
            if name == "step":  # a scalar; fused optimizers keep it on the device
                step = torch.as_tensor(float(value), dtype=torch.float32)
                if not 0 <= step < 2**53:
                    raise ValueError(f"{value!r:.60} is not a number of steps")
                own[name] = step.to(parameter.device) if optimizer.defaults["fused"] else step
            elif value is None and name == "momentum_buffer":  # SGD without momentum
                own[name] = None
            elif value.shape != parameter.shape:
                raise ValueError("a moment has another shape than its parameter")
            else:
                own[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
        optimizer.state[parameter] = own


def learning_rate(iteration, base_lr, max_iter, schedule="step", steps=(), gamma=0.1, warmup=500):
    """Return the learning rate of an iteration.

    Args:
        iteration: from 0.
        base_lr: maximum rate.
        max_iter: length of the run.
        schedule: "step" (multiplied by `gamma` at each of `steps`; the paper's) or "cosine" (falls to 0 at max_iter).
        steps: iterations at which the rate falls.
        gamma: factor at each step.
        warmup: iterations of linear warm-up from 0; 0 turns it off.
    """
    ramp = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        return base_lr * ramp * gamma ** sum(iteration >= step for step in steps)
    if schedule == "cosine":
        progress = (iteration - warmup) / max(1, max_iter - warmup)
        return base_lr * ramp * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    raise ValueError(f"schedule must be step or cosine, not {schedule!r}")
