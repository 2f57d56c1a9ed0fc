"""Where things are kept that can be made again."""

import os
import sys
from pathlib import Path


def cache_folder():
    """Where the user's caches are kept: SSD_CACHE where it is set, else the system's place; None without a home."""
    if override := os.environ.get("SSD_CACHE"):
        return Path(override)
    try:
        if sys.platform == "win32":
            place = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            place = Path.home() / "Library" / "Caches"
        else:
            place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a container's user who has no home
        return None
    return Path(place) / "ssd-pytorch"
