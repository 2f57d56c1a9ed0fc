"""Checkpoints: the catalogue of published ones, downloading, loading and saving, and the embedded ones."""

import importlib

from .catalogue import CATALOGUE, EMBEDDED, LIGHT, CatalogueEntry, resolve

__all__ = [
    "CATALOGUE",
    "EMBEDDED",
    "LIGHT",
    "CatalogueEntry",
    "CheckpointInfo",
    "load_network",
    "resolve",
    "save_checkpoint",
]

_NEED_TORCH = ("CheckpointInfo", "load_network", "save_checkpoint")


def __getattr__(name):
    # The catalogue must answer at once (--help, a list of names), and the rest of this package imports torch.
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(".checkpoint", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
