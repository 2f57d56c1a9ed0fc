"""The data sets' download scripts, on archives of a few tiny files."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from fileserver import serve

from data.scripts import bring, coco, download_coco, download_voc2007, download_voc2012, voc
from data.unpack import unpack
from utils.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "data" / "scripts"


def make_tar(files):
    """A .tar file's bytes; files: {path: content}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_zip(files):
    """A .zip file's bytes, uncompressed; files: {path: content}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def voc_files(split="train", ids=("000001", "000002"), leave_out=()):
    root = "VOCdevkit/VOC2007"
    files = {f"{root}/ImageSets/Main/{split}.txt": "".join(f"{name}\n" for name in ids).encode()}
    for name in ids:
        files[f"{root}/JPEGImages/{name}.jpg"] = b"picture"
        files[f"{root}/Annotations/{name}.xml"] = b"<annotation/>"
    return {path: content for path, content in files.items() if path.rpartition("/")[2] not in leave_out}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def publish_voc(monkeypatch, server):
    """Let VOC2007 be one archive, the server's, with a train split of two pictures."""
    known = voc.archive("2007", "VOC.tar", len(server.content), hashlib.md5(server.content).hexdigest(), ("train",))
    monkeypatch.setitem(voc.ARCHIVES, "2007", (dataclasses.replace(known, address=server.address),))
    monkeypatch.setitem(voc.SPLIT_SIZES, ("2007", "train"), 2)


def run_voc2007(*arguments):
    download_voc2007.main(download_voc2007.get_args_parser().parse_args([str(word) for word in arguments]))


def test_voc_is_fetched_unpacked_counted_and_then_left_alone(tmp_path, monkeypatch, capsys):
    with serve(make_tar(voc_files())) as server:
        publish_voc(monkeypatch, server)
        run_voc2007(tmp_path)
        assert (
            f"VOC2007: pictures with annotations: train 2\nVOC2007: complete in {tmp_path}" in capsys.readouterr().out
        )
        assert [path.name for path in tmp_path.iterdir()] == ["VOCdevkit"]  # neither archive, marker nor lock
        run_voc2007(tmp_path / "VOCdevkit")  # the folder may be named as train.py names it
        assert len(server.requests) == 1


def test_archives_are_kept_on_request(tmp_path, monkeypatch):
    with serve(make_tar(voc_files())) as server:
        publish_voc(monkeypatch, server)
        run_voc2007(tmp_path, "--keep_archives")
        run_voc2007(tmp_path, "--keep_archives")
        assert len(server.requests) == 1
    assert (tmp_path / "VOC.tar").read_bytes() == server.content


@pytest.mark.parametrize("lost", ["000002.jpg", "000001.xml", "train.txt"])
def test_what_is_missing_is_fetched_again(tmp_path, monkeypatch, lost):
    with serve(make_tar(voc_files())) as server:
        publish_voc(monkeypatch, server)
        run_voc2007(tmp_path)
        path = next(tmp_path.rglob(lost))
        path.write_bytes(b"")  # cut off, not only gone
        run_voc2007(tmp_path)
        assert len(server.requests) == 2
    assert path.stat().st_size > 0


def test_an_interrupted_unpacking_is_done_again(tmp_path, monkeypatch):
    with serve(make_tar(voc_files())) as server:
        publish_voc(monkeypatch, server)
        with monkeypatch.context() as patch:
            patch.setattr("data.unpack.unpack", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_voc2007(tmp_path)
        run_voc2007(tmp_path)
        assert len(server.requests) == 1  # the archive itself had arrived
    assert next(tmp_path.rglob("000002.jpg")).read_bytes() == b"picture"


def interrupted(archive, folder):
    """Unpack everything, the last file only in part, and stop."""
    unpack(archive, folder)
    next(Path(folder).rglob("000002.jpg")).write_bytes(b"pic")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (voc_files(leave_out=["000002.jpg"]), "1 pictures of .* are missing, such as 000002"),
        (voc_files(leave_out=["000001.xml"]), "1 annotations of .* are missing, such as 000001"),
        (voc_files(ids=["000001"]), "lists 1 pictures, not 2"),
        (voc_files(split="val"), "isn't there"),
    ],
    ids=["picture", "annotation", "short split", "no split"],
)
def test_an_incomplete_data_set_is_not_called_complete(tmp_path, monkeypatch, capsys, files, reason):
    with serve(make_tar(files)) as server:
        publish_voc(monkeypatch, server)
        with pytest.raises(InputError, match=reason):
            run_voc2007(tmp_path)
    assert ": complete in" not in capsys.readouterr().out


def test_a_wrong_archive_is_not_unpacked(tmp_path, monkeypatch):
    with serve(make_tar(voc_files()), "wrong_bytes") as server:
        publish_voc(monkeypatch, server)
        with pytest.raises(InputError, match="its md5 is"):
            run_voc2007(tmp_path)
    assert not (tmp_path / "VOCdevkit").exists()


def test_coco_is_fetched_unpacked_and_counted(tmp_path, monkeypatch, capsys):
    entry = {"file_name": "1.jpg", "id": 1}
    instances = {
        "images": [entry, entry],
        "annotations": [{"category_id": 1}] * 3,
        "categories": [{"id": 1, "name": "person"}],
    }
    text = json.dumps(instances).encode()
    contents = {
        coco.annotations("2017", 0, ""): make_zip(
            {f"annotations/instances_{s}2017.json": text for s in ("train", "val")}
        ),
        coco.pictures("train2017", 0, ""): make_zip({"train2017/1.jpg": b"x", "train2017/2.jpg": b"x"}),
    }
    monkeypatch.setattr(coco, "SPLIT_SIZES", {"train2017": (2, 3), "val2017": (2, 3)})
    with serve(b"") as server:
        for archive, content in contents.items():
            server.content = content
            md5 = hashlib.md5(content).hexdigest()
            here = dataclasses.replace(archive, address=server.address, size=len(content), md5=md5)
            monkeypatch.setitem(coco.ARCHIVES, "2017", (here,))
            download_coco.main(download_coco.get_args_parser().parse_args([str(tmp_path)]))
    out = capsys.readouterr().out
    assert "annotated objects: train2017 3, val2017 3" in out
    assert "train2017: 2 pictures" in out
    assert (tmp_path / "coco" / "annotations" / "instances_val2017.json").read_bytes() == text
    assert (tmp_path / "coco" / "images" / "train2017" / "2.jpg").is_file()
    monkeypatch.setitem(coco.SPLIT_SIZES, "train2017", (3, 4))
    assert "has 2 pictures, not 3" in coco.check_pictures("train2017", tmp_path)[0]
    assert "2 pictures and 3 objects, not 3 pictures and 4" in coco.check_annotations(("train2017",), tmp_path)[0]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 100])
def test_words_are_counted_across_blocks(tmp_path, block):
    path = tmp_path / "text"
    path.write_bytes(b"abcabcab-aabc")
    assert coco.count(path, b"abc", block) == 3


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "a/../../outside"])
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path, make, path):
    archive = tmp_path / "archive"
    archive.write_bytes(make({path: b"x"}))
    try:
        unpack(archive, tmp_path / "folder")
    except InputError as error:
        assert "unsafe" in str(error)
    inside = tmp_path / "folder"
    assert all(found == archive or inside in found.parents for found in tmp_path.rglob("*") if found.is_file())
    assert not Path("/tmp/outside").exists()


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(InputError, match="unsafe"):
        unpack(tmp_path / "x.tar", tmp_path / "folder")


@pytest.mark.parametrize("content", [b"", b"no archive", make_tar(voc_files())[:1800], make_zip({"a": b"1" * 99})[:-9]])
def test_a_damaged_archive_is_named(tmp_path, content):
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(InputError, match="archive is damaged"):
        unpack(tmp_path / "archive", tmp_path / "folder")


def with_header(**headers):
    """A .tar of one file whose extended header says what no file has."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def changed_zip(local, central, value):
    """A .zip of one file with bytes written over both its headers, at an offset in each."""
    data = bytearray(make_zip({"a": b"1" * 99}))
    for start in (data.index(b"PK\3\4") + local, data.index(b"PK\1\2") + central):
        data[start : start + len(value)] = value
    return bytes(data)


def of_lzma(damage):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", bytes(range(256)) * 4)
    data = bytearray(buffer.getvalue())
    start = data.index(b"PK\3\4") + 30 + len("a") + damage
    data[start : start + 8] = b"\xff" * 8
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        changed_zip(30, 46, b"\0"),
        changed_zip(6, 8, b"\1"),
        changed_zip(6, 8, b"\x20"),
        changed_zip(8, 10, b"\x63"),
        of_lzma(4),
        of_lzma(12),
    ],
    ids=["no name", "a password", "patches", "an unknown method", "settings of LZMA", "data of LZMA"],
)
def test_what_python_s_modules_trip_over_is_named(tmp_path, content):
    """They raise many more errors than the ones they are documented to raise."""
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(InputError, match=r"archive (is damaged or unsafe|can't be unpacked)"):
        unpack(tmp_path / "archive", tmp_path / "folder")


@pytest.mark.parametrize("time", ["nan", "1e300", "-1e300"])
def test_times_in_an_archive_dont_matter(tmp_path, time):
    (tmp_path / "archive").write_bytes(with_header(mtime=time))
    unpack(tmp_path / "archive", tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]


def test_a_long_name_in_an_archive_is_cut_short(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("x" * 9999)
        link.type, link.linkname = tarfile.SYMTYPE, "a"
        archive.addfile(link)
    with pytest.raises(InputError, match="unsafe") as caught:
        unpack(tmp_path / "x.tar", tmp_path / "folder")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_changed_byte_in_a_zip_is_found(tmp_path):
    (tmp_path / "archive").write_bytes(make_zip({"a": b"1" * 99}).replace(b"1111", b"1121", 1))
    with pytest.raises(InputError, match="archive is damaged"):
        unpack(tmp_path / "archive", tmp_path / "folder")


def test_a_target_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        bring.bring("VOC2007", (), tmp_path / "file")


def test_addresses_and_checksums_are_torchvision_s():
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    published = {(facts["url"], facts["md5"]) for facts in DATASET_YEAR_DICT.values()}
    assert {(a.address, a.md5) for archives in voc.ARCHIVES.values() for a in archives} <= published


def test_each_split_belongs_to_an_archive():
    splits = {(year, split) for year, archives in voc.ARCHIVES.items() for a in archives for split in a.check.args[1]}
    assert splits == set(voc.SPLIT_SIZES)
    assert voc.SPLIT_SIZES["2007", "trainval"] + voc.SPLIT_SIZES["2012", "trainval"] == 16551  # as in the paper


@pytest.mark.parametrize("script", [download_voc2007, download_voc2012, download_coco])
def test_help_needs_nothing_installed(script):
    command = [sys.executable, "-I", "-S", script.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "GB" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="the wrappers are for sh; the Python scripts run everywhere")
@pytest.mark.parametrize("name", ["VOC2007.sh", "VOC2012.sh", "COCO2014.sh", "COCO2017.sh"])
def test_the_lineage_s_script_names(name):
    done = subprocess.run(["sh", SCRIPTS / name, "--help"], capture_output=True, text=True, check=True)
    assert (name.removesuffix(".sh") if name.startswith("VOC") else "COCO") in done.stdout
