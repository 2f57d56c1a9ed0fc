"""Checkpoints: a catalogue of published ones, loading and saving, the embedded one. Does not import torch."""

from .catalogue import CATALOGUE, EMBEDDED, resolve

__all__ = ["CATALOGUE", "EMBEDDED", "resolve"]
