"""Archives given as datasets: unpacked once and read like a folder, or refused as a whole with nothing written."""

import io
import stat
import tarfile
import zipfile

import pytest
from conftest import draw_photos

from transfer_learning.datasets import archive
from transfer_learning.datasets.catalogue import load_dataset
from transfer_learning.errors import UserError


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = options.get("mode", stat.S_IFREG | 0o644) << 16
            made.writestr(info, content)
    return path


def tarred(path, members, kind=tarfile.REGTYPE, target=""):
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content) if kind == tarfile.REGTYPE else 0, kind, target
            made.addfile(info, io.BytesIO(content))
    return path


def contents(folder):
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz", "PHOTOS.ZIP"])
def test_an_archive_is_read_like_its_folder(name, photos, tmp_path):
    members = [*contents(photos), ("__MACOSX/._x.png", b"rubbish")]
    (zipped if name.lower().endswith(".zip") else tarred)(tmp_path / name, members)
    dataset = load_dataset(str(tmp_path / name), tmp_path / "data")
    expected = load_dataset(str(photos), tmp_path)
    assert dataset.class_names == expected.class_names
    assert [(example.id, example.label) for example in dataset.examples] == [
        (example.id, example.label) for example in expected.examples
    ]
    assert [file for file, _ in dataset.ignored] == ["__MACOSX/._x.png"]
    [place] = (tmp_path / "data" / "archives").iterdir()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    load_dataset(str(tmp_path / name), tmp_path / "data")
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before, "it was unpacked again"


GOOD = ("a/1.png", b"image")
HOSTILE = {
    "leads out": ([GOOD, ("../../evil.png", b"x")], "leads out of the folder"),
    "leads out from inside": ([GOOD, ("a/../../evil.png", b"x")], "leads out of the folder"),
    "absolute": ([GOOD, ("/tmp/evil.png", b"x")], "leads out of the folder"),
    "of Windows": ([GOOD, ("C:evil.png", b"x")], "is no name that every system takes"),
    "backslashes": ([GOOD, ("..\\..\\evil.png", b"x")], "is no name that every system takes"),
    "line end": ([GOOD, ("a/evil\n.png", b"x")], "is no name that every system takes"),
    "long name": ([GOOD, ("a/" + "x" * 300, b"x")], "is longer than a file name may be"),
    "case": ([GOOD, ("A/1.PNG", b"x")], "is the same as 'a/1.png' on some systems"),
    "accents": ([("a/\u00e9.png", b"x"), ("a/e\u0301.png", b"y")], "on some systems"),
}  # fmt: skip


def refused(path, tmp_path, match):
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=match):
        load_dataset(str(path), tmp_path / "data")
    assert {found for found in tmp_path.rglob("*") if found.is_file()} == {found for found in before if found.is_file()}


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_as_a_whole(case, pack, tmp_path):
    members, reason = HOSTILE[case]
    name = "hostile.zip" if pack is zipped else "hostile.tar"
    refused(pack(tmp_path / name, members), tmp_path, reason)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    refused(tarred(tmp_path / "hostile.tar", [("a/1.png", b"")], kind, "/etc/passwd"), tmp_path, "is a link or a device")


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "hostile.zip", [("a/1.png", b"/etc/passwd")], mode=stat.S_IFLNK | 0o777)
    refused(path, tmp_path, "is a link or a device")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 1000)
    refused(zipped(tmp_path / "bomb.zip", [("a/1.png", bytes(10**6))]), tmp_path, "makes more than")
    refused(tarred(tmp_path / "bomb.tar.gz", [("a/1.png", bytes(10**7))]), tmp_path, "makes more than")


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_ENTRIES", 10)
    members = [(f"a/{number}.png", b"") for number in range(11)]
    refused(zipped(tmp_path / "many.zip", members), tmp_path, "is entry 11, and no more than 10")
    refused(tarred(tmp_path / "many.tar", members), tmp_path, "is entry 11, and no more than 10")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all", None], ids=["empty", "text", "cut"])
def test_a_damaged_archive_is_refused(content, suffix, photos, tmp_path):
    path = tmp_path / f"photos{suffix}"
    if content is None:
        (zipped if suffix == ".zip" else tarred)(path, contents(photos))
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    refused(path, tmp_path, "cannot be unpacked|holds no images")


def test_a_disk_that_is_too_small_is_said_before(photos, tmp_path, monkeypatch):
    usage = archive.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda path: usage._replace(free=10))
    refused(zipped(tmp_path / "photos.zip", contents(photos)), tmp_path, "has 10 B left; free some space")


def test_archives_of_one_name_stay_apart(tmp_path):
    for number in range(2):
        folder = draw_photos(tmp_path / f"photos-{number}", num_per_class=2, seed=number)
        path = zipped(tmp_path / "photos.zip", contents(folder))
        dataset = load_dataset(str(path), tmp_path / "data")
        assert dataset.examples[0].content.read_bytes() == contents(folder)[0][1]
