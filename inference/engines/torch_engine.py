"""The network in PyTorch itself, on any device."""

import torch

from data.transforms import to_input


class TorchEngine:
    """Pictures to the heads' outputs in PyTorch.

    Args:
        net: an SSD without BatchNorm, taken over.
        info: its CheckpointInfo.
        device, dtype: what to compute on and in.
    """

    def __init__(self, net, info, device, dtype):
        self.net = net.to(device, dtype, memory_format=torch.channels_last)
        self.channel_order = info.channel_order
        self.device = device
        self.dtype = dtype

    def __call__(self, pictures):
        """pictures: uint8 RGB array [B, S, S, 3] -> (loc [B, P, 4], conf [B, P, C]), float32 on the device."""
        # Bytes cross over to the device, a quarter of what float32 would be; everything else happens there.
        return self.network(torch.from_numpy(pictures).to(self.device))

    def network(self, pictures):
        """The same for pictures that lie on the device: uint8 tensor [B, S, S, 3]."""
        loc, conf = self.net.raw(to_input(pictures, self.channel_order, self.dtype))
        return loc.float(), conf.float()
