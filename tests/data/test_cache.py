"""The folder of the user's caches."""

import sys
from pathlib import Path

import pytest

from data.cache import cache_folder


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/ssd-pytorch"),
        ("linux", {}, "/home/me/.cache/ssd-pytorch"),
        ("darwin", {}, "/home/me/Library/Caches/ssd-pytorch"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/ssd-pytorch"),
        ("win32", {}, "/home/me/AppData/Local/ssd-pytorch"),
        ("linux", {"SSD_CACHE": "/mine", "XDG_CACHE_HOME": "/x"}, "/mine"),
    ],
)
def test_the_system_says_where_caches_go(monkeypatch, platform, variables, expected):
    for name in ("SSD_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert cache_folder() == Path(expected)
