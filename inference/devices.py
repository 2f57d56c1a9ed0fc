"""Which device to compute on, and in which precision."""

import torch

from data.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name):
    """torch.device for a name; "auto" is CUDA where there is one, else the CPU. Raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; take auto, cpu, cuda or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no CUDA here; take --device auto or cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices")
        if device.index is None:  # the current device is another one in each thread
            return torch.device("cuda", torch.cuda.current_device())
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("--device mps: PyTorch finds no Metal here; take --device auto or cpu")
    elif device.type != "cpu":
        raise InputError(f"--device {name}: not supported; take auto, cpu, cuda or mps")
    return device


def choose_precision(name, device):
    """torch.dtype for a name; "auto" is the fastest that the device computes in natively. Raises InputError."""
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != "auto":
        raise InputError(f"--precision {name}: unknown; take auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":  # bfloat16 has float32's range: VGG's activations can outgrow float16's
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_computes_bfloat16() else torch.float32


def cpu_computes_bfloat16():
    """Whether this CPU multiplies in bfloat16 (AVX512_BF16 or AMX); without, it's slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(probe() for probe in (getattr(torch.cpu, name, None) for name in probes) if probe)
