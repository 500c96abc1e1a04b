"""Archives given as datasets: unpacked once and read like a folder, or refused as a whole with nothing written."""

import gzip
import io
import resource
import stat
import struct
import tarfile
import zipfile
import zlib

import pytest

from tests.support.logs import log_messages
from tests.support.photos import draw_photos
from transfer_learning.datasets.sources import archive
from transfer_learning.datasets.sources.registry import load_dataset
from transfer_learning.errors import UserError


def zipped(path, members, mode=stat.S_IFREG | 0o644):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            made.writestr(info, content)
    return path


def tarred(path, members, kind=tarfile.REGTYPE, target="", **options):
    with tarfile.open(
        path, f"w:{path.suffix[1:].removeprefix('t')}" if path.suffix != ".tar" else "w", **options
    ) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content) if kind == tarfile.REGTYPE else 0, kind, target
            made.addfile(info, io.BytesIO(content))
    return path


def contents(folder):
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize(
    "name",
    [
        "photos.zip",
        "photos.tar",
        "photos.tar.gz",
        "photos.tar.xz",
        "photos.tar.bz2",
        "photos.txz",
        "PHOTOS.ZIP",
        "a.b.TAR.GZ",
    ],
)
def test_an_archive_is_read_like_its_folder(name, photos, tmp_path):
    said = log_messages()
    members = [*contents(photos), ("__MACOSX/._x.png", b"rubbish"), ("more.zip", b"an archive inside is not unpacked")]
    made = tmp_path / name.lower()
    (zipped if made.suffix == ".zip" else tarred)(made, members)
    made.rename(tmp_path / name)
    dataset = load_dataset(str(tmp_path / name), tmp_path / "data")
    expected = load_dataset(str(photos), tmp_path)
    assert dataset.class_names == expected.class_names
    assert [(example.id, example.label) for example in dataset.examples] == [
        (example.id, example.label) for example in expected.examples
    ]
    assert [file for file, _ in dataset.ignored] == ["__MACOSX/._x.png", "more.zip"]
    assert said[0].startswith(f"Unpacking {tmp_path / name}")
    [place] = (tmp_path / "data" / "archives").iterdir()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    load_dataset(str(tmp_path / name), tmp_path / "data")
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before, "it was unpacked again"
    assert len(said) == 1


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Äpfel/ß 日本.png".encode(), "Äpfel/ß 日本.png"),
        ("cafe\u0301/1.png".encode(), "cafe\u0301/1.png"),
        ("Ä/1.png".encode("cp437"), "Ä/1.png"),
    ],
    ids=["UTF-8", "decomposed UTF-8", "code page 437"],
)
def test_names_in_utf8_are_known_without_the_flag(raw, name, tmp_path):
    """As macOS's Compress writes them."""
    made = zipped(tmp_path / "photos.zip", [("x" * len(raw), b"1")])
    made.write_bytes(made.read_bytes().replace(b"x" * len(raw), raw))
    with archive.entries(made) as found:
        assert [(entry.name, entry.open().read()) for entry in found] == [(name, b"1")]


GOOD = ("a/1.png", b"image")
OUTSIDE = "leads out of the folder"
NO_NAME = "is not a valid name on every system"
HOSTILE = {
    "leads out": ([GOOD, ("../../evil.png", b"x")], OUTSIDE),
    "leads out from inside": ([GOOD, ("a/../../evil.png", b"x")], OUTSIDE),
    "leads out and back": ([GOOD, ("a/../../data/b/1.png", b"x")], OUTSIDE),
    "absolute": ([GOOD, ("{outside}/evil.png", b"x")], OUTSIDE),
    "absolute twice over": ([GOOD, ("//{outside}/evil.png", b"x")], OUTSIDE),
    "nothing": ([GOOD, ("./.", b"x")], OUTSIDE),
    "of Windows": ([GOOD, ("C:evil.png", b"x")], NO_NAME),
    "a drive": ([GOOD, ("C:\\evil.png", b"x")], NO_NAME),
    "backslashes": ([GOOD, ("..\\..\\evil.png", b"x")], OUTSIDE),
    "backslashes from inside": ([GOOD, ("a\\..\\..\\evil.png", b"x")], OUTSIDE),
    "backslash first": ([GOOD, ("\\evil.png", b"x")], OUTSIDE),
    "a share": ([GOOD, ("\\\\host\\share\\evil.png", b"x")], OUTSIDE),
    "twice in two ways of Windows": ([GOOD, ("a\\1.png", b"x")], "is the same as 'a/1.png'"),
    "line end": ([GOOD, ("a/evil\n.png", b"x")], NO_NAME),
    "separates lines": ([GOOD, ("a/evil\u2028.png", b"x")], NO_NAME),
    "isolates": ([GOOD, ("a/\u2066evil.png", b"x")], NO_NAME),
    "marks a direction": ([GOOD, ("a/\u200fevil.png", b"x")], NO_NAME),
    "no text": ([GOOD, ("a/evil\x7f.png", b"x")], NO_NAME),
    "writes right to left": ([GOOD, ("a/\u202egnp.exe", b"x")], NO_NAME),
    "turns the terminal red": ([GOOD, ("a/\x1b[31m.png", b"x")], NO_NAME),
    "long name": ([GOOD, ("a/" + "x" * 300, b"x")], "is longer than a file name may be"),
    "long name in few letters": ([GOOD, ("a/" + "\u85ac" * 90, b"x")], "is longer than a file name may be"),
    "long path": ([GOOD, ("/".join(["x" * 200] * 20), b"x")], "has too long or deep a path"),
    "deep path": ([GOOD, ("x/" * 40 + "1.png", b"x")], "has too long or deep a path"),
    "twice": ([GOOD, GOOD], "is the same as 'a/1.png'"),
    "twice in two ways": ([GOOD, ("a//./1.png", b"x")], "is the same as 'a/1.png'"),
    "case": ([GOOD, ("A/1.PNG", b"x")], "is the same as 'a/1.png' on some systems"),
    "accents": ([("a/\u00e9.png", b"x"), ("a/e\u0301.png", b"y")], "on some systems"),
    "case of a folder": ([GOOD, ("A/2.png", b"x")], "lies in 'A', which is 'a' on some systems"),
    "accents of a folder": ([("x/\u00e9/1.png", b"x"), ("x/e\u0301/2.png", b"y")], "on some systems"),
    "file, then folder": ([GOOD, ("a/1.png/2.png", b"x")], "is a file and a folder at once"),
    "folder, then file": ([("a/b/c/1.png", b"x"), ("A/B", b"x")], "is a file and a folder at once"),
}


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path, tmp_path, match):
    """Checks that an archive is refused in one sentence, and that no file is written anywhere."""
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=match) as caught:
        load_dataset(str(path), tmp_path / "data")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert files_below(tmp_path) == before
    assert not list((tmp_path / "data" / "archives").iterdir()), "a part of it is left"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_as_a_whole(case, pack, tmp_path):
    members, reason = HOSTILE[case]
    members = [(name.replace("{outside}", str(tmp_path)), content) for name, content in members]
    (tmp_path / "x").mkdir()
    refused(pack(tmp_path / "x" / ("hostile.zip" if pack is zipped else "hostile.tar"), members), tmp_path, reason)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_what_is_no_plain_file_is_refused(kind, tmp_path):
    refused(
        tarred(tmp_path / "hostile.tar", [("a/1.png", b"")], kind, "/etc/passwd"), tmp_path, "is a link or a device"
    )


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_what_is_no_plain_file_in_a_zip_is_refused(kind, tmp_path):
    path = zipped(tmp_path / "hostile.zip", [("a/1.png", b"/etc/passwd")], mode=kind | 0o777)
    refused(path, tmp_path, "is a link or a device")


def test_a_link_whose_path_is_too_long_to_be_followed_is_refused_too(tmp_path):
    """CVE-2025-4517 and CVE-2025-12060: filters of `tarfile` that resolve a path give up on long ones."""
    folder = "d" * 200
    with tarfile.open(tmp_path / "hostile.tar", "w") as made:
        for step in range(16):
            info = tarfile.TarInfo("/".join([folder] * (step + 1)))
            info.type = tarfile.DIRTYPE
            made.addfile(info)
        info = tarfile.TarInfo("escape")
        info.type, info.linkname = tarfile.SYMTYPE, "/".join([folder] * 16) + "/.." * 20
        made.addfile(info)
        made.addfile(tarfile.TarInfo("escape/evil.png"))
    refused(tmp_path / "hostile.tar", tmp_path, "is a link or a device")


def test_rights_and_owners_are_those_of_any_new_file(tmp_path):
    path = zipped(tmp_path / "x.zip", [("a/1.png", b"x"), ("b/1.png", b"y")], mode=stat.S_IFREG | 0o7777)
    file = load_dataset(str(path), tmp_path / "data").examples[0].source
    assert not file.stat().st_mode & 0o7111


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("photos\\{}\\1.png", "photos/{}/1.png"),
        ("{}/Screenshot 2026-04-15 at 1.00.11\u202fAM.png", None),
        ("{}/no\u00a0break\u3000wide\u2009thin.png", None),
        ("{}/photo 12:30:05.png", None),
        ("{}/cafe\u0301.png", None),
        ("{}/\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.png", None),
        ("{}/\U0001f468\u200d\U0001f469.png", None),
    ],
)
def test_names_of_other_systems_are_unpacked(name, file, pack, tmp_path):
    members = [(name.format(label), label.encode()) for label in ("a", "b")]
    if "\\" in name and pack is zipped:
        members.append(("photos\\a\\", b""))  # an entry for the folder
    dataset = load_dataset(str(pack(tmp_path / ("x.zip" if pack is zipped else "x.tar"), members)), tmp_path / "data")
    assert [example.id for example in dataset.examples] == [(file or name).format(label) for label in ("a", "b")]
    assert [example.source.read_bytes() for example in dataset.examples] == [b"a", b"b"]
    assert dataset.class_names == ("a", "b")


def test_an_archive_of_nothing_but_an_archive_says_where_that_is(tmp_path):
    inner = zipped(tmp_path / "photos.zip", [("a/1.png", b"x"), ("b/1.png", b"y")])
    path = zipped(tmp_path / "download.zip", [("photos.zip", inner.read_bytes()), ("read me.txt", b"x")])
    with pytest.raises(UserError, match="contains no images, only the archive photos.zip, .* pass --dataset") as error:
        load_dataset(str(path), tmp_path / "data")
    assert load_dataset(str(error.value).split("--dataset ")[1][:-1], tmp_path / "data").class_names == ("a", "b")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "secret.zip", [GOOD])
    content = path.read_bytes()
    place = content.index(b"PK\1\2")
    path.write_bytes(content[: place + 8] + b"\1" + content[place + 9 :])
    refused(path, tmp_path, "is encrypted")


# ---------------------------------------------------------------------------------------------------------------------
# Bombs


def local_header(name, content, num_bytes):
    return (
        struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(b""), len(content), num_bytes, len(name), 0)
        + name
        + content
    )


def listed(name, packed, num_bytes, offset, checksum=0):
    fields = 20, 20, 0, 8, 0, 0, checksum, packed, num_bytes, len(name), 0, 0, 0, 0, 0, offset
    return struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", *fields) + name


def zip_of(path, body, entries):
    """A zip out of its parts, with the 64-bit record that many entries need."""
    number, length, start = len(entries), sum(map(len, entries)), len(body)
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, number, number, length, start)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, start + length, 1)
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(body + b"".join(entries) + end)
    return path


def deflated(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    content = bytes(150_000_000)
    for pack, name in ((zipped, "bomb.zip"), (tarred, "bomb.tar.gz")):
        refused(
            pack(tmp_path / name, [("a/1.png", content)]), tmp_path, "makes more than 100 MB of an archive of 0.1 MB"
        )


def test_a_bomb_of_entries_that_overlap_is_refused(tmp_path):
    """A thousand entries that share one body, as in the zip of 42 KB that holds 5 GB."""
    packed = deflated(bytes(200_000))
    body = local_header(b"a/1.png", packed, 200_000)
    entries = [listed(b"a/%d.png" % number, len(packed), 200_000, 0) for number in range(1000)]
    refused(zip_of(tmp_path / "overlap.zip", body, entries), tmp_path, "makes more than 100 MB")


@pytest.mark.parametrize("said", [5, 10**9])
def test_a_size_that_is_a_lie_is_refused(said, tmp_path):
    packed = deflated(bytes(5_000_000))
    body = local_header(b"a/1.png", packed, said)
    path = zip_of(tmp_path / "lie.zip", body, [listed(b"a/1.png", len(packed), said, 0)])
    refused(path, tmp_path, "makes more than" if said > 5 else "cannot be unpacked .*CRC")


def test_many_archives_in_an_archive_stay_packed(tmp_path):
    inner = io.BytesIO()
    zipped(inner, [("a/1.png", bytes(10**6))])
    members = [*((f"{number}.zip", inner.getvalue()) for number in range(5)), ("a/1.png", b"x"), ("b/1.png", b"y")]
    dataset = load_dataset(str(zipped(tmp_path / "nested.zip", members)), tmp_path / "data")
    assert len(dataset.examples) == 2 and len(dataset.ignored) == 5


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_million_entries_are_refused_without_a_list_of_them(tmp_path):
    body = local_header(b"a/1.png", b"", 0)
    entries = [listed(b"a/%07d.png" % number, 0, 0, 0) for number in range(1_000_000)]
    path = zip_of(tmp_path / "million.zip", body, entries)
    before = memory()
    refused(path, tmp_path, "lists more than 500,000 files")
    assert memory() - before < 3 * path.stat().st_size


@pytest.mark.long
def test_a_million_entries_of_a_tar_are_refused_without_a_list_of_them(tmp_path):
    path = tmp_path / "million.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        for number in range(1_000_000):
            file.write(tarfile.TarInfo(f"a/{number:07}.png").tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    before = memory()
    refused(path, tmp_path, "is number 500,001, and at most 500,000")
    assert memory() - before < 200e6


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRIES", 10)
    members = [(f"{number % 2}/{number}.png", b"") for number in range(11)]
    load_dataset(str(zipped(tmp_path / "few.zip", members[:10])), tmp_path / "few")
    load_dataset(str(tarred(tmp_path / "few.tar", members[:10])), tmp_path / "few")
    refused(zipped(tmp_path / "many.zip", members), tmp_path, "lists more than 10 files")
    refused(tarred(tmp_path / "many.tar", members), tmp_path, "is number 11, and at most 10")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_unpacks_to_half_a_gigabyte_is_not_read(kind, tmp_path):
    path = tmp_path / "header.tar.gz"
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 500_000_000
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf())
        for _ in range(500):
            file.write(bytes(1_000_000))
    before = memory()
    refused(path, tmp_path, "a list of its files takes more than")
    assert memory() - before < 50e6


def test_a_list_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_LISTED_BYTES", 10_000)
    entries = [listed(b"a/" + b"x" * 200 + b"%d.png" % number, 0, 0, 0) for number in range(100)]
    refused(zip_of(tmp_path / "long.zip", b"", entries), tmp_path, "a list of its files takes more than")


# ---------------------------------------------------------------------------------------------------------------------
# Damage, and places


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all", None], ids=["empty", "text", "cut"])
def test_a_damaged_archive_is_refused(content, suffix, photos, tmp_path):
    path = tmp_path / f"photos{suffix}"
    if content is None:
        (zipped if suffix == ".zip" else tarred)(path, contents(photos))
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    refused(path, tmp_path, "cannot be unpacked")


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_with_a_damaged_part_loses_nothing_in_silence(suffix, place, photos, tmp_path):
    path = tmp_path / f"photos{suffix}"
    (zipped if suffix == ".zip" else tarred)(path, contents(photos))
    content = bytearray(path.read_bytes())
    start = int(place * len(content)) // 512 * 512
    content[start : start + 512] = b"\xa5" * len(content[start : start + 512])
    path.write_bytes(content)
    try:
        dataset = load_dataset(str(path), tmp_path / "data")
    except UserError as error:
        assert "cannot be unpacked" in str(error) or "is not unpacked" in str(error)
    else:  # a .tar has no checksum of contents: an image may be another one, but none is missing
        assert suffix == ".tar" and len(dataset.examples) == len(contents(photos))


def test_a_disk_that_is_too_small_is_said_before(photos, tmp_path, monkeypatch):
    usage = archive.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    refused(zipped(tmp_path / "photos.zip", contents(photos)), tmp_path, "has 0.1 MB free; free space")


def test_archives_of_one_name_stay_apart(tmp_path):
    for number in range(2):
        folder = draw_photos(tmp_path / f"photos-{number}", num_per_class=2, seed=number)
        path = zipped(tmp_path / "photos.zip", contents(folder))
        dataset = load_dataset(str(path), tmp_path / "data")
        assert dataset.examples[0].source.read_bytes() == contents(folder)[0][1]


@pytest.mark.parametrize("name", [".zip", "..zip", "x" * 240 + ".zip", "-rf.zip", "a\nb.zip"])
def test_the_name_of_an_archive_does_not_decide_where_it_is_unpacked(name, photos, tmp_path):
    path = zipped(tmp_path / name, contents(photos))
    load_dataset(str(path), tmp_path / "data")
    assert {entry.name for entry in tmp_path.iterdir()} == {name, "data"}
    assert len(list((tmp_path / "data" / "archives").iterdir())) == 1
