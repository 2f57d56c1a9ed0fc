"""From a checkpoint's name to its file: what is used, what is downloaded, what is refused."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from checks import refused
from fileserver import serve

import weights
from weights import catalogue, download
from weights.checkpoint import load_network, read_file

ROOT = Path(__file__).parents[2]
CONTENT = b"a checkpoint" * 1000
NAME = "ssd300_mAP_77.43_v2.pth"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of weights/, and another one as the working directory."""
    folder, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(catalogue, "FOLDER", folder)
    monkeypatch.setattr(catalogue, "EMBEDDED", folder / "embedded.pth")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def server(folder, monkeypatch):
    """A server of the catalogue's 77.43 file."""
    known = {"size": len(CONTENT), "checksum": f"sha256 {hashlib.sha256(CONTENT).hexdigest()}"}
    with serve(CONTENT) as server:
        entry = dataclasses.replace(catalogue.CATALOGUE[NAME], address=server.address, **known)
        monkeypatch.setitem(catalogue.CATALOGUE, NAME, entry)
        yield server


def test_the_embedded_checkpoint():
    path = weights.EMBEDDED
    net, info = load_network(path)
    assert path.parent == ROOT / "weights"
    assert path.stat().st_size < 16 * 10**6
    assert info.width == net.width == 0.5
    assert 0.2 < info.mAP < 0.7
    assert weights.resolve(None) in (weights.EMBEDDED, ROOT / "weights" / NAME)


def test_the_published_facts():
    from torchvision.models import VGG16_Weights

    best, caffe, base, same_base = weights.CATALOGUE.values()
    for entry in (best, caffe, base):
        assert entry.address == f"https://s3.amazonaws.com/amdegroot-models/{entry.name}"
    assert best.size == 105_151_288
    assert best.checksum == "sha256 3d147eb48c8f3771101e12ff14d8105b935d2e4e08fa471e2ee5a2426c20d61e"
    assert same_base.address == VGG16_Weights.IMAGENET1K_FEATURES.url
    assert f"-{same_base.checksum.removeprefix('sha256 ')}.pth" in same_base.name


def test_without_a_name_the_better_file_is_used_only_if_it_is_there(folder):
    refused(r"embedded\.pth.*restore it with git", weights.resolve, None)
    (folder / "embedded.pth").write_bytes(b"small")
    for name in (None, "embedded.pth", "weights/embedded.pth"):
        assert weights.resolve(name) == folder / "embedded.pth"
    (folder / NAME).write_bytes(CONTENT)
    assert weights.resolve(None) == folder / NAME


@pytest.mark.parametrize("name", [NAME, f"weights/{NAME}", f"../weights/{NAME}"])
def test_a_known_name_is_downloaded_once(folder, server, name):
    for _ in range(2):
        assert weights.resolve(name).resolve() == folder / NAME
    assert len(server.requests) == 1
    assert (folder / NAME).read_bytes() == CONTENT


def test_a_path_is_never_replaced_by_something_else(folder, server, tmp_path):
    (folder / NAME).write_bytes(CONTENT)
    Path(NAME).write_bytes(b"the user's own")
    assert weights.resolve(NAME) == Path(NAME)
    words = f"no such file; get it from {server.address} .*sha256 [0-9a-f]{{64}}.*python -m weights.download"
    for read in (weights.resolve, read_file):
        refused(words, read, tmp_path / NAME)
    assert server.requests == []


def test_what_is_neither_a_file_nor_known(folder, tmp_path):
    for name, words in (
        ("ssd300_mAP_77.43.pth", r"did you mean ssd300_mAP_77\.43_v2\.pth"), (tmp_path, "is a folder"),
        ("nonsense", "nonsense: no such file; published checkpoints: ssd300"),
    ):  # fmt: skip
        refused(words, weights.resolve, name)


def test_the_command_lists_and_downloads(server, capsys, tmp_path):
    parser = download.get_args_parser()
    download.main(parser.parse_args([]))
    listing = capsys.readouterr().out
    assert all(name in listing for name in weights.CATALOGUE)
    download.main(parser.parse_args([NAME, "--folder", str(tmp_path / "new")]))
    assert (tmp_path / "new" / NAME).read_bytes() == CONTENT
    refused("nonsense: unknown name", download.main, parser.parse_args(["nonsense"]))
