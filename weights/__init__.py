"""Checkpoints: the catalogue of published ones, loading and saving, and the embedded ones. Imports no torch."""

from .catalogue import CATALOGUE, EMBEDDED, resolve

__all__ = ["CATALOGUE", "EMBEDDED", "resolve"]
