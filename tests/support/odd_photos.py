"""A folder of class folders with one of everything that people's folders hold besides plain photos."""

import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

CLASSES = ("circle", "cross", "stripes")


def drawing(label: int, seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A smooth picture of its own for each seed, with a colour of its class."""
    rng = np.random.default_rng([label, seed])
    small = rng.integers(0, 255, (6, 8, 3), np.uint8)
    small[..., label] = np.minimum(255, small[..., label].astype(int) + 120)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make_odd_photos(root: Path, num_plain: int = 12) -> dict[str, str]:
    """Fills `root`; returns the finding that is expected for each odd file, "" for one that is ignored or plain."""
    root = root.resolve()
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(num_plain):
            drawing(label, number).save(root / name / f"plain {number:02d}.jpg", quality=95)
    expected = {}
    here, beside = root / "circle", root.with_name(f"{root.name} elsewhere")
    beside.mkdir()
    odd = drawing(0, 100)

    def expect(kind: str, name: str, folder: Path = here) -> Path:
        expected[(folder / name).relative_to(root).as_posix()] = kind
        return folder / name

    # files
    expect("empty file", "empty.jpg").touch()
    content = (here / "plain 00.jpg").read_bytes()
    expect("truncated file", "cut.jpg").write_bytes(content[: len(content) // 2])
    odd.save(root / "x.png")
    png = (root / "x.png").read_bytes()
    (root / "x.png").unlink()
    expect("truncated file", "cut.png").write_bytes(png[: len(png) // 2])
    expect("not an image", "text.jpg").write_text("no image\n" * 20)
    header = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + png[24:29]
    bomb = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
    expect("too many pixels", "bomb.png").write_bytes(bomb)
    expect("unreadable file", "broken link.jpg").symlink_to(root / "gone.jpg")
    expect("unreadable file", "round.jpg").symlink_to(here / "round.jpg")
    drawing(0, 101).save(expect("wrong suffix", "jpeg.png"), "JPEG")
    drawing(0, 102).save(expect("image without image suffix", "photo.txt"), "PNG")
    for number, suffix in enumerate((".jp2", ".dng", ".JXL")):
        expect("unsupported format", f"phone {number}{suffix}").write_bytes(b"\0\0\0\x0cjP  ")
    drawing(0, 103).save(expect("", "good.webp"))
    drawing(0, 104, 9, 8).save(expect("too small", "small.png"))
    drawing(0, 105, 600, 20).save(expect("elongated", "long.png"))
    # colours
    drawing(0, 106).convert("CMYK").save(expect("CMYK", "cmyk.jpg"))
    drawing(0, 107).convert("P").save(expect("palette", "palette.png"))
    alpha = drawing(0, 108).convert("RGBA")
    alpha.putalpha(drawing(0, 109).convert("L"))
    alpha.save(expect("transparent", "alpha.png"))
    grey = np.asarray(drawing(0, 110).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(expect("more than 8 bits", "sixteen.png"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(expect("more than 8 bits", "sixteen.tif"))
    drawing(0, 111).convert("L").save(expect("grey", "grey.jpg"))
    drawing(0, 112).convert("LAB").save(expect("other colours", "lab.tif"))
    turned = Image.Exif()
    turned[0x0112] = 6
    drawing(0, 113).save(expect("EXIF rotation", "turned.jpg"), exif=turned)
    frames = [drawing(0, 114 + number).convert("P") for number in range(3)]
    frames[0].save(expect("animated or multi-page", "film.gif"), save_all=True, append_images=frames[1:])
    frames[1].convert("RGB").save(
        expect("animated or multi-page", "pages.tif"), save_all=True, append_images=[frames[2].convert("RGB")]
    )
    Image.new("RGB", (90, 70), (10, 20, 30)).save(expect("single colour", "blank.png"))
    # names and links
    drawing(0, 120).save(expect("similar file names", "Café.png"))
    drawing(0, 121).save(
        expect("similar file names", "cafe\u0301.png")
    )  # the same name on some systems, written otherwise
    drawing(0, 122).save(expect("similar file names", "CAFE.png"))
    drawing(0, 123).save(beside / "out.png")
    expect("link outside the folder", "outside.png").symlink_to(beside / "out.png")
    drawing(0, 124).save(beside / "also.png")
    (root / "cross" / "linked").symlink_to(beside, target_is_directory=True)
    expect("link outside the folder", "linked/also.png", root / "cross")
    expect("link outside the folder", "linked/out.png", root / "cross")  # which is under two labels, too
    expect("duplicate", "inside.jpg").symlink_to(here / "plain 01.jpg")
    expected["circle/plain 01.jpg"] = "duplicate"
    (root / "stripes" / "back").symlink_to(root, target_is_directory=True)
    expected["stripes/back"] = ""
    os.mkfifo(expect("", "pipe.jpg"))
    # what zip programs, systems and people leave behind
    for name in (
        "__MACOSX/circle/._1.jpg",
        ".DS_Store",
        "circle/._plain 00.jpg",
        "circle/Thumbs.db",
        "desktop.ini",
        ".ipynb_checkpoints/1.jpg",
        "readme.txt",
        "circle/no suffix",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        expected[name] = ""
    (root / os.fsdecode(b"no text \xff.t\xfft")).write_text("x")
    expected[os.fsdecode(b"no text \xff.t\xfft")] = ""
    # nearly equal pictures
    soft = drawing(1, 3).filter(ImageFilter.GaussianBlur(0.5)).resize((80, 60))
    soft.save(expect("near-duplicate with another label", "soft.jpg"), quality=80)
    expected["cross/plain 03.jpg"] = "near-duplicate with another label"
    return expected
