"""From a checkpoint's name to its file: what is taken, what is downloaded, what is refused."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from fileserver import serve

import weights
from utils.errors import InputError
from weights import catalogue, download

ROOT = Path(__file__).parents[2]
CONTENT = b"a checkpoint" * 1000
NAME = "ssd300_mAP_77.43_v2.pth"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of weights/, and another as the working directory."""
    folder = tmp_path / "weights"
    elsewhere = tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(catalogue, "FOLDER", folder)
    monkeypatch.setattr(catalogue, "EMBEDDED", folder / "embedded.pth")
    monkeypatch.chdir(elsewhere)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


def publish(monkeypatch, server, **changes):
    """Let the catalogue's 77.43 file be the server's."""
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    entry = dataclasses.replace(catalogue.CATALOGUE[NAME], address=server.address, **{**known, **changes})
    monkeypatch.setattr(catalogue, "CATALOGUE", MappingProxyType({**catalogue.CATALOGUE, NAME: entry}))


def test_the_embedded_ones():
    """The light one is half as wide; both come with the repository, small enough for it, and know what they reach."""
    for path, width, most in ((weights.EMBEDDED, 0.5, 16), (weights.LIGHT, 0.25, 5)):
        net, info = weights.load_network(path)
        assert path.parent == ROOT / "weights"
        assert path.stat().st_size < most * 10**6
        assert info.width == net.width == width
        assert 0.1 < info.mAP < 0.5
    assert weights.resolve(None) in (weights.EMBEDDED, ROOT / "weights" / NAME)


def test_the_published_facts():
    best = weights.CATALOGUE[NAME]
    assert best.address == "https://s3.amazonaws.com/amdegroot-models/ssd300_mAP_77.43_v2.pth"
    assert best.size == 105_151_288
    assert best.sha256 == "3d147eb48c8f3771101e12ff14d8105b935d2e4e08fa471e2ee5a2426c20d61e"
    assert (best.channel_order, best.clip, best.mAP) == ("RGB", True, 0.7743)
    caffe = weights.CATALOGUE["ssd_300_VOC0712.pth"]
    assert (caffe.channel_order, caffe.clip, caffe.mAP) == ("BGR", False, 0.7726)
    assert set(weights.CATALOGUE) == {
        NAME,
        "ssd_300_VOC0712.pth",
        "vgg16_reducedfc.pth",
        "vgg16_features-amdegroot-88682ab5.pth",
    }


def test_torchvision_s_file_is_the_one_that_torchvision_names():
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_FEATURES.url
    entry = weights.CATALOGUE[url.rpartition("/")[2]]
    assert entry.address == url
    assert f"-{entry.sha256}.pth" in url


def test_entries_and_catalogue_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        weights.CATALOGUE[NAME].sha256 = "0"
    with pytest.raises(TypeError):
        weights.CATALOGUE["x"] = weights.CATALOGUE[NAME]


def test_without_a_name_the_better_file_is_taken_only_where_it_lies(folder):
    with pytest.raises(InputError, match=r"embedded\.pth"):
        weights.resolve(None)
    (folder / "embedded.pth").write_bytes(b"small")
    assert weights.resolve(None) == folder / "embedded.pth"
    (folder / NAME).write_bytes(CONTENT)
    assert weights.resolve(None) == folder / NAME


@pytest.mark.parametrize("name", [NAME, f"weights/{NAME}", Path("weights") / NAME])
def test_a_known_name_is_downloaded_once(folder, monkeypatch, name):
    with serve(CONTENT, "good") as server:
        publish(monkeypatch, server)
        assert weights.resolve(name) == folder / NAME
        assert weights.resolve(name) == folder / NAME
        assert len(server.requests) == 1
    assert (folder / NAME).read_bytes() == CONTENT


def test_our_own_folder_may_be_given_in_full(folder, monkeypatch):
    with serve(CONTENT, "good") as server:
        publish(monkeypatch, server)
        assert weights.resolve(str(folder / NAME)) == folder / NAME


def test_a_file_of_that_name_that_is_there_is_taken_as_it_is(folder, monkeypatch):
    Path(NAME).write_bytes(b"the user's own")
    with serve(CONTENT, 500) as server:
        publish(monkeypatch, server)
        assert weights.resolve(NAME) == Path(NAME)
    assert server.requests == []


def test_a_path_elsewhere_is_never_downloaded_to(folder, monkeypatch, tmp_path):
    with serve(CONTENT, "good") as server:
        publish(monkeypatch, server)
        with pytest.raises(InputError, match="give only the name"):
            weights.resolve(tmp_path / NAME)
    assert server.requests == []
    assert not (tmp_path / NAME).exists()


def test_what_is_neither_file_nor_known(folder, tmp_path):
    with pytest.raises(InputError, match=r"did you mean ssd300_mAP_77\.43_v2\.pth"):
        weights.resolve("ssd300_mAP_77.43.pth")
    with pytest.raises(InputError, match=r"nonsense isn't there; files that can be downloaded"):
        weights.resolve("nonsense")
    with pytest.raises(InputError, match="is a folder"):
        weights.resolve(tmp_path)


def test_a_download_that_fails_says_what_to_put_where(folder, monkeypatch):
    with serve(CONTENT, 404) as server:
        publish(monkeypatch, server)
        with pytest.raises(InputError) as caught:
            weights.resolve(NAME)
        entry = catalogue.CATALOGUE[NAME]
    for part in (NAME, entry.address, entry.sha256, str(folder), "404"):
        assert part in str(caught.value)
    assert not (folder / NAME).exists()


def test_a_wrong_file_is_refused_by_the_hash_in_its_name(folder, monkeypatch):
    with serve(CONTENT, "wrong_bytes") as server:
        publish(monkeypatch, server, size=None, sha256=hashlib.sha256(CONTENT).hexdigest()[:8])
        with pytest.raises(InputError, match="not the published file: its sha256 is"):
            weights.resolve(NAME)
    assert not (folder / NAME).exists()


def test_the_command_lists_and_downloads(folder, monkeypatch, capsys):
    parser = download.get_args_parser()
    download.main(parser.parse_args([]))
    listing = capsys.readouterr().out
    assert all(name in listing for name in weights.CATALOGUE)
    with serve(CONTENT, "good") as server:
        publish(monkeypatch, server)
        monkeypatch.setattr(download, "CATALOGUE", catalogue.CATALOGUE)
        download.main(parser.parse_args([NAME, "--folder", str(folder)]))
    assert (folder / NAME).read_bytes() == CONTENT
    with pytest.raises(InputError, match="nonsense isn't known"):
        download.main(parser.parse_args(["nonsense"]))


def test_names_are_known_without_loading_torch():
    code = "import sys, weights, weights.download; print(len(weights.CATALOGUE), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(weights.CATALOGUE)), "False"]


def test_the_package_offers_loading_and_saving():
    from weights.checkpoint import CheckpointInfo, load_network, save_checkpoint

    assert weights.load_network is load_network
    assert weights.save_checkpoint is save_checkpoint
    assert weights.CheckpointInfo is CheckpointInfo
    with pytest.raises(AttributeError, match="nothing"):
        weights.nothing  # noqa: B018
