"""Draws the images of the benchmarks: ten classes of coloured shapes over smooth noise, as JPEGs of photo size."""

import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.job import run_job

# A class is a shape and a colour, which a frozen backbone can distinguish.
CLASSES = [(shape, colour) for shape in ("circle", "square", "triangle", "cross", "ring") for colour in ("red", "blue")]
COLOURS = {"red": (200, 50, 40), "blue": (40, 70, 200)}
VAL_SHARE = 5  # one of five of each class


def photos(flags: Namespace) -> dict:
    """`--number` images of 500 x 375 in train/ and val/, 50 to 120 KB each."""
    return make(flags.to, flags.number, (500, 375), grain=14.0, quality=92, split=True)


def small(flags: Namespace) -> dict:
    """`--number` images of `--size` x `--size` pixels in train/ and val/."""
    return make(flags.to, flags.number, (flags.size, flags.size), grain=8.0, quality=85, split=True)


def large(flags: Namespace) -> dict:
    """`--number` images of 12 megapixels in class folders, without splits."""
    return make(flags.to, flags.number, (4000, 3000), grain=5.0, quality=90, split=False)


def make(folder: Path, number: int, shape: tuple[int, int], grain: float, quality: int, split: bool) -> dict:
    """Writes the images into a temporary folder that is renamed at the end, so that `folder` is complete or absent."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    num_bytes = 0
    for index in range(number):
        shape_name, colour = CLASSES[index % len(CLASSES)]
        part = ("val" if index // len(CLASSES) % VAL_SHARE == 1 else "train") if split else "."
        path = unfinished / part / f"{colour}_{shape_name}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(shape_name, COLOURS[colour], shape, grain, index).save(path, quality=quality)
        num_bytes += path.stat().st_size
    unfinished.rename(folder)
    return {"images": number, "mean_kilobytes": num_bytes / number / 1000}


def draw(shape_name: str, colour: tuple[int, int, int], shape: tuple[int, int], grain: float, seed: int) -> Image.Image:
    """One image: smooth noise, the shape at a random place, and sensor grain over both."""
    rng = np.random.default_rng([zlib.crc32(shape_name.encode()), seed])
    coarse = Image.fromarray(rng.integers(60, 190, (6, 8, 3), np.uint8))
    image = coarse.resize(shape, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    radius = min(shape) * rng.uniform(0.18, 0.32)
    x, y = (rng.uniform(radius, side - radius) for side in shape)
    box = (x - radius, y - radius, x + radius, y + radius)
    fill = tuple(int(value + rng.integers(-25, 26)) for value in colour)
    if shape_name == "circle":
        pen.ellipse(box, fill=fill)
    elif shape_name == "ring":
        pen.ellipse(box, outline=fill, width=int(radius / 3))
    elif shape_name == "square":
        pen.rectangle(box, fill=fill)
    elif shape_name == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    else:
        pen.line([(x - radius, y), (x + radius, y)], fill=fill, width=int(radius / 2))
        pen.line([(x, y - radius), (x, y + radius)], fill=fill, width=int(radius / 2))
    noise = rng.standard_normal((shape[1], shape[0], 1), np.float32) * grain
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    run_job({"photos": photos, "small": small, "large": large})
