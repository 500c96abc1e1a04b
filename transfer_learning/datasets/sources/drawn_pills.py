"""Drawn images of ten fictitious pharmaceutical products, a substitute for the Kaggle dataset of `pharma.py`.

Like that dataset, images are composed of cut-out products over backgrounds. Each form (carton, blister, foil, bottle,
pill) of a product in `PRODUCTS` is drawn once per edition and light direction as a small RGBA image, a *sprite*; an
image puts one to six sprites of one product on a background, adds objects of no class, covers a part, and simulates a
bad camera.

Neighbouring products share colours, patterns or pills on purpose, so that colour alone does not decide. Coordinates are
those of images: x to the right, y down; light is a vector to the lamp.
"""

import colorsys
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from transfer_learning.cli.progress import count_progress
from transfer_learning.datasets.dataset import Dataset
from transfer_learning.datasets.sources.folder import read
from transfer_learning.errors import UserError
from transfer_learning.machine.resources import usable_cores

logger = logging.getLogger(__name__)

VERSION = 1  # raise it with every change of a pixel: datasets on disk are then drawn again
NUM_IMAGES_PER_CLASS = 120
VERSION_FILE = ".drawn_pills_version"

Colour = tuple[int, ...]  # RGB, 0..255
Rng = np.random.Generator
Value = TypeVar("Value")

# How hard the dataset is; shares are probabilities per image.
NUM_EDITIONS = 5  # of each form of a product: layout, colours, wear
EDITION_COLOUR_CHANGE = 0.05  # relative change of each colour channel from one edition to another
LOOSE_PILLS_SHARE = 0.16  # of photographs that show nothing but loose pills
IMPRINT_SHARE = 0.75  # of loose pills whose imprint, if they have one, lies upwards
BACK_SHARE = 0.25  # of cartons that show the side without the name
DISTRACTORS_MAX = 2
BORROWED_COLOUR_SHARE = 0.4  # of the colours of backgrounds and distractors: taken from some product
COVER_SHARE = 0.3  # something lies or reaches over the products
OUT_OF_FRAME = 0.10  # how far the centre of an item may leave the middle of the picture, at most
PACK_LENGTH, PILL_LENGTH = (0.52, 0.90), (0.22, 0.40)  # of the side of the picture
PERSPECTIVE = 0.10  # displacement of a corner, relative to the length of the item
COLOUR_CAST = 0.10  # relative gain of a channel
EXPOSURE = (0.78, 1.20)
BLUR_MAX = 1.1  # pixels at 256
NOISE_MAX = 13.0  # grey levels
JPEG_QUALITY = (45, 92)

WHITE = (246, 246, 242)
PACKS = {"carton": 4, "blister": 4, "foil": 2, "pill": 2}


def _rgb(text: str) -> tuple[Colour, ...]:
    return tuple(tuple(bytes.fromhex(word)) for word in text.split())


class Product(NamedTuple):
    """One row of the table: how a product looks in each of its forms."""

    pill: str  # a key of PILL_WIDTHS
    pill_colours: tuple[Colour, ...]  # one, or two halves
    imprint: str
    pack_colours: tuple[Colour, ...]  # ground, house colour, accent
    pattern: str  # of the print, a key of PRINT_SPACE
    forms: dict[str, int] = PACKS  # form -> how often, relative to the others
    bottle_colours: tuple[Colour, ...] = _rgb("f0f0ee fafafa")  # body, cap


MOUTHWASH = {"bottle": 7, "carton": 3, "pill": 1}, _rgb("34aa80 eef2f0")
ZINC = {"bottle": 3, "carton": 3, "blister": 2, "pill": 3}, _rgb("ce802c fafaf8")
OIL = {"bottle": 4, "carton": 2, "pill": 4}, _rgb("be7024 f5cd46")
PRODUCTS = {
    "Alaxan": Product("capsule", _rgb("c6282c f6ecd0"), "AX", _rgb("f6f6f2 cd2028 fabe28"), "diagonal"),
    "Bactidol": Product("round", _rgb("b0debe"), "", _rgb("f6f6f2 148c60 1e5aa0"), "wave", *MOUTHWASH),
    "Bioflu": Product("caplet", _rgb("ea7632"), "BF", _rgb("f6f6f2 ee6e1e 2850a0"), "band"),
    "Biogesic": Product("round", _rgb("f6f6f2"), "BG", _rgb("fcd63c 1846a0 f6f6f2"), "band"),
    "DayZinc": Product("capsule", _rgb("f09632 f6ecd0"), "DZ", _rgb("fac850 e86e1e f6f6f2"), "corner", *ZINC),
    "Decolgen": Product("caplet", _rgb("f6c454"), "DC", _rgb("f6f6f2 f49624 188254"), "chevron"),
    "Fish Oil": Product("softgel", _rgb("e8a02c"), "", _rgb("face5c 185496 ec8c1e"), "wave", *OIL),
    "Kremil S": Product("oval", _rgb("e2f0e2"), "KS", _rgb("f6f6f2 1a8c5a 2864be"), "diagonal"),
    "Medicol": Product("softgel", _rgb("2c7ab0"), "M", _rgb("fadc46 1454aa dc3232"), "corner"),
    "Neozep": Product("round", _rgb("faf0ce"), "N", _rgb("f6f6f2 d4282c fcc832"), "chevron"),
}
CLASS_NAMES: tuple[str, ...] = tuple(PRODUCTS)
FORMS = ("carton", "blister", "foil", "bottle", "pill")
LIGHTS = tuple(np.array([math.cos(a), math.sin(a)], np.float32) for a in np.arange(8) * math.pi / 4)

PILL_WIDTHS = {"round": 1.0, "oval": 0.76, "caplet": 0.44, "capsule": 0.36, "softgel": 0.58}  # relative to the length
# What a pattern leaves free for the name, between the left and the right end of a pack.
PRINT_SPACE = dict(
    band=(0.05, 0.95), diagonal=(0.04, 0.62), wave=(0.05, 0.95), chevron=(0.3, 0.96), corner=(0.04, 0.66)
)
TABLETS = ("round", "oval", "caplet")
NEUTRAL_WORDS = ("Tea", "Soap", "Matches", "Cocoa", "Candles", "Salt")
SKIN = _rgb("ecbea0 d6a07c aa7454 744c36")


def _pick(rng: Rng, options: Sequence[Value]) -> Value:
    return options[int(rng.integers(0, len(options)))]


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    """Returns the colour that lies `share` (0 to 1) of the way from `a` to `b`; colours are RGB in 0..255."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def _changed(colour: Colour, rng: Rng) -> Colour:
    gains = 1 + EDITION_COLOUR_CHANGE * rng.uniform(-1, 1, 3)
    return tuple(int(c) for c in np.clip(np.array(colour) * gains, 0, 255))


def _random_colour(rng: Rng) -> Colour:
    """Returns any colour or, as often as BORROWED_COLOUR_SHARE says, one that some product is printed in."""
    if rng.random() < BORROWED_COLOUR_SHARE:
        product = PRODUCTS[_pick(rng, CLASS_NAMES)]
        return _changed((*product.pack_colours, *product.pill_colours)[int(rng.integers(0, 4))], rng)
    hue, strength, value = rng.random(), 0.8 * rng.random() ** 1.5, rng.uniform(0.3, 0.97)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, strength, value))


def _smooth_noise(rng: Rng, cells: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Returns float32 of `shape` (height, width) in about 0..1: random values on a grid of `cells`, interpolated."""
    values = Image.fromarray(rng.random(cells, dtype=np.float32))
    return np.asarray(values.resize(shape[::-1], Image.Resampling.BICUBIC))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # part of Pillow


def _write_text(draw: ImageDraw.ImageDraw, box: tuple, text: str, fill: Colour | int, bold: bool = True) -> None:
    """Writes one line of `text` in the middle of `box` (left, top, right, bottom), as large as fits."""
    left, top, right, bottom = box
    width = draw.textlength(text, _font(100)) / 100 + 0.02
    size = max(6, int(min((right - left - 4) / width, (bottom - top) * 0.95)))
    stroke = size // 24 if bold else 0
    draw.text(((left + right) / 2, (top + bottom) / 2), text, fill, _font(size), "mm", stroke_width=stroke)


def _write_small_print(draw: ImageDraw.ImageDraw, box: tuple, rng: Rng, fill: Colour, pitch: int) -> None:
    """Fills `box` with lines of dashes, as illegible text."""
    left, top, right, bottom = (int(v) for v in box)
    for y in range(top, bottom - 2, pitch):
        x, end = left, right - int(rng.integers(0, max(1, (right - left) // 3)))
        while x < end:
            dash = int(rng.integers(6, 22))
            draw.line((x, y, min(x + dash, end), y), fill, max(1, pitch // 4))
            x += dash + 4


def _pill(
    shape: str, length: int, colours: tuple[Colour, ...], imprint: str, light: np.ndarray, gloss: float = 150
) -> Image.Image:
    """Draws one pill lying along x as RGBA of about `length` pixels: a height field under one lamp.

    `light` is (2,): the direction to the lamp in the plane of the picture.
    """
    half, radius = length / 2, length * PILL_WIDTHS[shape] / 2
    y, x = np.mgrid[-radius - 2 : radius + 2, -half - 2 : half + 2].astype(np.float32) + 0.5
    if shape == "softgel":
        distance = np.hypot(x / half, y / radius)  # 0 in the middle, 1 at the rim
    else:
        distance = np.hypot(np.maximum(np.abs(x) - (half - radius), 0), y) / radius
    pressed = shape in TABLETS  # which are flat with a rounded rim
    rise = np.clip((distance - 0.62) / 0.38, 0, 1) if pressed else np.clip(distance, 0, 1)
    height = np.sqrt(np.maximum(1 - rise**2, 0.02)) * radius * (0.34 if pressed else 0.8)
    alpha = np.clip((1 - distance) * radius + 0.5, 0, 1)

    colour = np.empty((*x.shape, 3), np.float32)
    colour[:] = colours[0]
    if len(colours) == 2:
        colour[x > 0.06 * length] = colours[1]
        height -= 0.03 * length * (np.abs(x - 0.06 * length) < 0.008 * length + 0.5)  # the seam
    if imprint:
        page = Image.new("L", x.shape[::-1])
        middle = 0.0 if pressed else 0.27 * length
        box = (half + middle - 0.75 * radius, 0.45 * radius, half + middle + 0.75 * radius, 1.65 * radius)
        _write_text(ImageDraw.Draw(page), box, imprint, 255)
        mask = np.asarray(page, np.float32) / 255
        if pressed:
            height -= 0.022 * length * mask  # stamped
        else:
            colour *= 1 - 0.55 * mask[..., None]  # printed
    if shape == "caplet":
        height -= 0.02 * length * (np.abs(x) < 0.5 + length / 90)  # the line it breaks along

    slope_y, slope_x = np.gradient(height)
    toward = (0.75 - 0.62 * (slope_x * light[0] + slope_y * light[1])) / np.sqrt(1 + slope_x**2 + slope_y**2)
    if shape == "softgel":  # filled with oil: bright where the light leaves it, a sharp highlight where it enters
        glow = np.clip(-(x * light[0] / half + y * light[1] / radius), -1, 1) * distance
        shade = 0.72 + 0.30 * toward + 0.35 * glow
    else:
        shade = 0.42 + 0.70 * toward
    shine = 0.0 if pressed else gloss * np.clip((toward - 0.80) / 0.18, 0, 1) ** 2
    colour = colour * shade[..., None] + np.asarray(shine)[..., None]
    pixels = np.dstack([np.clip(colour, 0, 255), alpha * 255])
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


def _face(name: str, product: Product, size: tuple[int, int], rng: Rng, back: bool, inset: float = 0.0) -> Image.Image:
    """Draws one printed side of a pack as RGB of `size` (width, height), writing `inset` (relative) from its ends."""
    width, height = size
    ground, house, accent = (_changed(c, rng) for c in product.pack_colours)
    if rng.random() < 0.25:  # the other way round: an edition printed in the house colour
        ground, house = house, ground
    face = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(face)
    thick, flipped = height * rng.uniform(0.22, 0.34), rng.random() < 0.3
    if back:
        draw.rectangle((0, 0, width, thick * 0.6), house)
        draw.rectangle((0, thick * 0.6, width, thick * 0.75), accent)
        _write_small_print(draw, (10, thick, width * 0.95, height - 6), rng, _mixed(ground, (60, 60, 70), 0.6), 8)
        left = width * 0.66
        draw.rectangle((left, height * 0.6, width - 8, height - 8), WHITE)
        for x in range(int(left) + 4, width - 12, 4):
            draw.line((x, height * 0.63, x, height - 11), (30, 30, 30), int(rng.integers(1, 4)))
        return face
    if product.pattern == "band":
        draw.rectangle((0, height - thick, width, height), house)
        draw.rectangle((0, height - thick * 1.3, width, height - thick), accent)
    elif product.pattern == "diagonal":
        for start, end, colour in ((0.84, 1.3, house), (0.76, 0.84, accent)):
            foot = [(width * (end - 0.25), height), (width * (start - 0.25), height)]
            draw.polygon([(width * start, 0), (width * end, 0), *foot], colour)
    elif product.pattern == "wave":
        xs = np.linspace(0, width, 40)
        for shift, colour in ((0.22, accent), (0.0, house)):
            ys = height - thick * (1.0 + shift) - 0.10 * height * np.sin(2 * np.pi * xs / width + 3.0 * shift)
            draw.polygon([(0, height), *zip(xs.tolist(), ys.tolist(), strict=True), (width, height)], colour)
    elif product.pattern == "chevron":
        tip = width * 0.10
        for start, colour in ((0.02, house), (0.12, accent), (0.19, house)):
            left = width * start
            front = [(left, 0), (left + tip, height / 2), (left, height)]
            draw.polygon(front + [(x - tip, y) for x, y in reversed(front)], colour)
        draw.rectangle((0, height - thick * 0.4, width, height), house)
    else:
        draw.ellipse((width * 0.60, height * 0.32, width * 1.35, height * 1.9), accent)
        draw.ellipse((width * 0.65, height * 0.42, width * 1.35, height * 1.9), house)
    if flipped:
        face = face.transpose(Image.Transpose.ROTATE_180)
        draw = ImageDraw.Draw(face)
    left, right = PRINT_SPACE[product.pattern] if not flipped else (1 - v for v in PRINT_SPACE[product.pattern][::-1])
    left, right, middle = width * (left + inset), width * (right - inset), height * (0.36 if not flipped else 0.58)
    ink = house if sum(abs(a - b) for a, b in zip(house, ground, strict=True)) > 150 else (30, 30, 60)
    _write_text(draw, (left, middle - height * 0.20, right, middle + height * 0.16), name, ink)
    grey, line = _mixed(ground, (70, 70, 80), 0.6), middle + height * 0.19
    _write_small_print(draw, (left + 6, line, left + (right - left) * 0.6, line + 14), rng, grey, 7)
    return face


def _carton(name: str, product: Product, rng: Rng, light: np.ndarray) -> Image.Image:
    """Draws a folding box from above and a little from one side: the front and, below it, a darker flank."""
    width, height, depth = 288, int(rng.integers(120, 190)), int(rng.integers(14, 40))
    back = rng.random() < BACK_SHARE
    pack = Image.new("RGB", (width, height + depth))
    pack.paste(_face(name, product, (width, height), rng, back), (0, 0))
    if not back and rng.random() < 0.6:  # what is inside, printed on the front
        length = 36 if product.pill in ("round", "oval") else 58
        pill = _pill(product.pill, length, product.pill_colours, "", light).rotate(25, expand=True)
        pack.paste(pill, (int(width * 0.76), int(height * 0.60)), pill)
    flank = Image.new("RGB", (width, depth), _changed(_pick(rng, product.pack_colours[:2]), rng))
    _write_text(ImageDraw.Draw(flank), (10, 2, width * 0.5, depth - 2), name, (90, 90, 100), bold=False)
    pack.paste(Image.eval(flank, lambda v: int(v * 0.62)), (0, height))
    sheen = np.linspace(1.04, 0.90, width, dtype=np.float32)[None, :, None]
    pixels = np.clip(np.asarray(pack) * (sheen if light[0] < 0 else sheen[:, ::-1]), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGBA")


def _blister(name: str, product: Product, rng: Rng, light: np.ndarray, foil: bool) -> Image.Image:
    """Draws a strip of pills behind clear plastic or, with `foil`, its printed back."""
    columns, rows = _pick(rng, ((5, 2), (4, 2), (6, 2), (4, 1), (5, 1)))
    cell = 288 // columns
    tall = max(PILL_WIDTHS[product.pill], 0.5)
    size = (columns * cell, int(rows * cell * (tall + 0.22)) + 26)
    ground, house, accent = (_changed(c, rng) for c in product.pack_colours)
    ink = house if sum(house) < 560 else accent
    y, x = np.mgrid[: size[1], : size[0]]  # crumpled, embossed aluminium
    grey = 176 + 60 * _smooth_noise(rng, (5, 7), size[::-1]) + 7 * (((x + y) % 6 < 2) ^ ((x - y) % 6 < 2))
    strip = Image.fromarray(np.clip(grey[..., None] + (-4, 0, 4), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(strip)
    if foil:
        draw.rectangle((0, 0, size[0], 16), house)
        draw.rectangle((0, 16, size[0], 21), accent)
        step = int(rng.integers(34, 48))
        for row, y in enumerate(range(28, size[1] - 14, step)):
            for x in range(-50 * (row % 2) - 10, size[0], 124):
                _write_text(draw, (x, y, x + 88, y + 24), name, ink, bold=False)
    else:
        printed = rng.random() < 0.7
        edge = _mixed(ground, (190, 190, 190), 0.25) if printed else (200, 202, 206)
        draw.rectangle((0, size[1] - 24, size[0], size[1]), edge)
        if printed:
            draw.rectangle((0, size[1] - 24, size[0] * 0.2, size[1]), house)
            _write_text(draw, (size[0] * 0.24, size[1] - 24, size[0] * 0.75, size[1] - 1), name, ink)
    num_popped = int(rng.integers(0, 3)) if rng.random() < 0.6 else 0
    popped = {int(i) for i in rng.integers(0, rows * columns, num_popped)}
    length = int(cell * (0.70 if product.pill in ("round", "oval") else 0.80))
    colours = tuple(_changed(c, rng) for c in product.pill_colours)
    pill = _pill(product.pill, length, colours, product.imprint, light)
    half = np.array(pill.size) / 2 + 5  # of a cavity
    radius = float(half[1])

    def around(centre, scale=1.0):
        return (*(centre - half * scale), *(centre + half * scale))

    for index in range(rows * columns):
        centre = np.array([(index % columns + 0.5) * cell, (index // columns + 0.5) * (size[1] - 26) / rows])
        centre[1] += 13 if foil else 1
        if foil:  # the cavities push through as dents
            draw.rounded_rectangle(around(centre), radius, None, (150, 152, 158), 2)
            draw.arc(around(centre), 200, 300, (246, 247, 250), 3)
            if index in popped:
                angles, reach = np.linspace(0, 6.0, 11), rng.uniform(0.5, 0.8, (11, 1))
                hole = centre + half * reach * np.column_stack([np.cos(angles), np.sin(angles)])
                draw.polygon([tuple(point) for point in hole.tolist()], (66, 66, 72))
            continue
        draw.rounded_rectangle(around(centre), radius, (188, 192, 200), (150, 153, 160), 2)
        draw.rounded_rectangle(around(centre - 2 * light), radius, None, (240, 242, 246), 1)
        if index in popped:
            draw.ellipse(around(centre, 0.5), (96, 96, 104))
        else:
            left, top = (int(v) for v in centre - np.array(pill.size) / 2)
            strip.paste(pill, (left, top), pill)
        x, y = centre + light * half * 0.5
        draw.line((x - half[0] * 0.3, y, x + half[0] * 0.2, y), (255, 255, 255), 2)  # the plastic shines
    alpha = Image.new("L", size)
    ImageDraw.Draw(alpha).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 12, 255)
    strip.putalpha(alpha)
    return strip


def _bottle(name: str, product: Product, rng: Rng, light: np.ndarray) -> Image.Image:
    """Draws an upright bottle with a cap and a label, shaded as a cylinder."""
    height = 288
    wide = 60 if product.pill == "round" else 72  # half the width: mouthwash is slim, jars are stout
    neck, shoulder, cap_end = int(height * 0.17), int(height * rng.uniform(0.26, 0.34)), int(height * 0.16)
    y, x = np.mgrid[:height, -wide - 2 : wide + 2].astype(np.float32)
    rise = np.clip((y - neck) / (shoulder - neck), 0, 1)
    foot = np.clip((y - height + 12) / 12, 0, 1)
    half = wide * (0.52 + 0.48 * np.sqrt(1 - (1 - rise) ** 2)) - 5 * foot**2
    half = np.where(y < cap_end, wide * 0.60, half)
    body, cap = (_changed(c, rng) for c in product.bottle_colours)
    colour = np.empty((*x.shape, 3), np.float32)
    colour[:] = body
    colour[y < shoulder + rng.uniform(-20, 24)] = _mixed(body, WHITE, 0.35)  # empty above the filling
    colour[y < cap_end] = cap
    top, bottom = int(shoulder + 14), height - int(rng.integers(18, 40))
    face = _face(name, product, (wide * 3, bottom - top), rng, rng.random() < BACK_SHARE / 2, 0.09)
    around = np.clip(np.arcsin(np.clip(x[0] / wide, -1, 1)) / np.pi + 0.5, 0, 1)  # a label runs around the cylinder
    colour[top:bottom] = np.asarray(face)[:, (around * (wide * 3 - 1)).astype(int)]
    across = np.clip(x / half, -1, 1)
    toward = 0.75 * np.sqrt(1 - across**2) + 0.45 * across * (1 if light[0] > 0 else -1)
    shine = 70 * np.exp(-(((across - (0.5 if light[0] > 0 else -0.5)) / 0.10) ** 2))
    ribs = np.where((y < cap_end) & (x % 6 < 2), 0.88, 1.0)
    colour = colour * ((0.50 + 0.58 * toward) * ribs)[..., None] + shine[..., None]
    alpha = np.clip(half - np.abs(x) + 0.5, 0, 1)
    return Image.fromarray(np.dstack([np.clip(colour, 0, 255), alpha * 255]).astype(np.uint8), "RGBA")


@lru_cache(maxsize=192)  # a class needs fewer; 192 are about 30 MB
def _sprite(name: str, form: str, edition: int, lamp: int) -> Image.Image:
    """Returns one form of a product as RGBA, its longer side about 290 pixels (a pill: 120)."""
    lamp -= lamp % {"pill": 1, "blister": 2}.get(form, 4)  # the flat forms hardly show where the lamp is
    product, light = PRODUCTS[name], LIGHTS[lamp]
    rng = np.random.default_rng((1, CLASS_NAMES.index(name), FORMS.index(form), edition))
    if form == "carton":
        return _carton(name, product, rng, light)
    if form == "bottle":
        return _bottle(name, product, rng, light)
    if form == "pill":
        imprint = product.imprint if rng.random() < IMPRINT_SHARE else ""  # it may lie on its face
        return _pill(product.pill, 120, tuple(_changed(c, rng) for c in product.pill_colours), imprint, light)
    return _blister(name, product, rng, light, foil=form == "foil")


def _distractor(rng: Rng, light: np.ndarray) -> tuple[Image.Image, float]:
    """Draws an object of no class (another carton, a coin, a pen, a sweet or a note); returns it and its usual length."""
    kind = rng.integers(0, 5)
    colours = tuple(_random_colour(rng) for _ in range(3))
    if kind == 0:
        pattern = _pick(rng, tuple(PRINT_SPACE))
        other = Product("round", colours[:1], "", colours, pattern, {})
        word = _pick(rng, NEUTRAL_WORDS)
        return _carton(word, other, rng, light), rng.uniform(0.3, 0.5)
    if kind == 1:
        metal = _pick(rng, ((196, 160, 92), (176, 178, 182), (172, 112, 76)))
        return _pill("round", 90, (metal,), str(rng.integers(1, 10)), light), rng.uniform(0.12, 0.2)
    if kind == 2:
        pen = _pill("capsule", 280, colours[:2], "", light)
        return pen.resize((280, 34)), rng.uniform(0.5, 0.9)
    if kind == 3:
        shape = _pick(rng, ("round", "caplet", "softgel"))
        return _pill(shape, 90, colours[:1], "", light), rng.uniform(0.10, 0.22)
    return _note(rng), rng.uniform(0.35, 0.6)


def _note(rng: Rng) -> Image.Image:
    size = (220, int(rng.integers(130, 220)))
    note = Image.new("RGB", size, _mixed(WHITE, _random_colour(rng), 0.25))
    _write_small_print(ImageDraw.Draw(note), (16, 18, 200, size[1] - 10), rng, (90, 90, 110), 14)
    return note.convert("RGBA")


def _background(rng: Rng, size: int) -> Image.Image:
    """Draws a table top as RGB: wood, cloth, tiles, paper, stone or something out of focus."""
    side = size  # drawn at 1 / 1.42 of its scale: turned by any angle it still fills the picture
    y = np.arange(side, dtype=np.float32)[:, None] * (1.42 / size)
    x = y.T
    kind = rng.integers(0, 6)
    first: Any = _random_colour(rng)
    second: Any = _random_colour(rng)
    share = _smooth_noise(rng, (5, 5), (side, side))
    if kind == 0:
        tone = rng.uniform(0.4, 1.25)
        first, second = (np.array(c) * tone for c in ((186, 132, 84), (112, 70, 42)))
        grain = _smooth_noise(rng, (120, 4), (side, side)) * 0.6 + _smooth_noise(rng, (24, 3), (side, side)) * 0.6
        plank = np.floor(y / np.float32(rng.uniform(0.22, 0.5)))
        share = np.clip(grain - 0.1 + 0.12 * (plank % 3), 0, 1) + 0.7 * (np.diff(plank, axis=0, prepend=0) > 0)
    elif kind == 1:
        checks, pitch = rng.uniform(3, 12), 2 * np.pi * rng.uniform(40, 60)
        weave = 0.12 * np.sin(x * pitch) * np.sin(y * pitch)
        across, along = (0.35 * (np.sin(v * 2 * np.pi * checks) > 0.3) for v in (x, y))
        share = across + along * rng.integers(0, 2) + weave + 0.4 * share
    elif kind == 2:
        pitch = rng.uniform(0.16, 0.45)
        cell_x, cell_y = x / pitch, y / pitch
        tint = rng.random((12, 12), dtype=np.float32)[cell_y.astype(int) % 12, cell_x.astype(int) % 12]
        joint = np.minimum(np.minimum(cell_x % 1, 1 - cell_x % 1), np.minimum(cell_y % 1, 1 - cell_y % 1)) < 0.03
        share = np.where(joint, 1.0, 0.22 * tint + 0.15 * share)
    elif kind == 3:
        first = _mixed(WHITE, first, 0.2)
        ruled = (y * rng.uniform(14, 26)) % 1 < 0.07
        share = 0.12 * share + 0.35 * ruled * rng.integers(0, 2)
    elif kind == 4:
        fine = _smooth_noise(rng, (side // 4, side // 4), (side, side))
        share = np.where(fine > 0.72, 0.9, 0.35 * share) + 0.3 * (fine < 0.18)
    first, second = np.array(first, np.float32), np.array(second, np.float32)
    pixels = first + (second - first) * np.clip(share, 0, 1, dtype=np.float32)[..., None]
    table = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    angle, middle = rng.uniform(0, 2 * math.pi), size / 2
    cos, sin = math.cos(angle) / 1.42, math.sin(angle) / 1.42
    turn = (cos, sin, middle * (1 - cos - sin), -sin, cos, middle * (1 + sin - cos))
    return table.transform((size, size), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)


class Scene(NamedTuple):
    """A picture on which things are laid."""

    picture: Image.Image
    rng: Rng
    light: np.ndarray  # (2,): the direction that it comes from


def _place(
    scene: Scene, sprite: Image.Image, centre: np.ndarray, length: float, angle: float, lift: float = 0.03
) -> None:
    """Lays `sprite` on the picture, turned, sheared and seen in perspective, with the shadow that it throws.

    `centre` is (2,) and `length` the longer side of the sprite afterwards, both in pixels; `lift` is the length of the
    shadow relative to `length`.
    """
    picture, rng, light = scene
    scale = length / max(sprite.size)
    if scale < 0.6:  # shrinking by sampling alone would leave jagged edges and text
        factor = min(4, round(1 / scale))
        sprite, scale = sprite.reduce(factor), scale * factor
    sprite = ImageOps.expand(sprite, 1)  # a clear rim, or straight edges come out as stairs
    width, height = sprite.size
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    corners = (source - (width / 2, height / 2)) * scale
    corners[:, 0] += corners[:, 1] * rng.uniform(-0.12, 0.12)
    slimness = min(width, height) / max(width, height)
    corners += length * slimness * PERSPECTIVE * rng.uniform(-0.5, 0.5, (4, 2))
    cos, sin = math.cos(angle), math.sin(angle)
    corners = corners @ np.array([(cos, sin), (-sin, cos)]) + centre
    reach = lift * length
    margin = 3 + 2 * reach
    origin = np.floor(np.maximum(corners.min(0) - margin, -margin))
    end = np.ceil(np.minimum(corners.max(0) + margin, np.array(picture.size) + margin))
    if (end - origin < 4).any():
        return
    width, height = (int(v) for v in end - origin)
    rows = []  # of the equations for the eight numbers with which Pillow maps the corners back to those of the source
    for (x, y), (u, v) in zip(corners - origin, source, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    numbers = np.linalg.solve(np.array(rows), source.reshape(8)).tolist()
    patch = sprite.transform((width, height), Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BILINEAR)
    left, top = (int(v) for v in origin)
    alpha = patch.getchannel("A")
    shadow = Image.blend(Image.new("L", alpha.size), alpha.filter(ImageFilter.BoxBlur(0.6 * reach)), 0.5)
    picture.paste((16, 14, 18), (round(left - light[0] * reach), round(top - light[1] * reach)), shadow)
    picture.paste(patch, (left, top), alpha)


def _lamp(light_angle: float, angle: float) -> int:
    """Returns the index in LIGHTS of the lamp as a sprite turned by `angle` sees it."""
    return round((light_angle - angle) / (math.pi / 4)) % 8


def _cover(scene: Scene, light_angle: float) -> None:
    """Lets fingers or a slip of paper reach in over an edge of the picture."""
    size, rng = scene.picture.width, scene.rng
    side = rng.uniform(0, 2 * math.pi)
    outward = np.array([math.cos(side), math.sin(side)])
    across = np.array([-outward[1], outward[0]])
    if rng.random() < 0.45:
        centre, length = size * (0.5 + 0.56 * outward), size * rng.uniform(0.4, 0.7)
        _place(scene, _note(rng), centre, length, rng.uniform(0, 2 * math.pi), 0.05)
        return
    skin = _pick(rng, SKIN)
    thick, depth, offset = rng.uniform(0.09, 0.14), rng.uniform(0.16, 0.32), rng.uniform(-0.2, 0.2)
    length = thick / PILL_WIDTHS["capsule"] * 1.5
    for finger in range(int(rng.integers(1, 5))):
        angle = side + rng.uniform(-0.12, 0.12)
        sprite = _pill("capsule", 240, (skin,), "", LIGHTS[_lamp(light_angle, angle)], 20)
        sprite = sprite.resize((360, sprite.height))
        nail = (10, sprite.height * 0.28, 54, sprite.height * 0.72)
        ImageDraw.Draw(sprite).rounded_rectangle(nail, 14, _mixed(skin, (255, 226, 220), 0.45))
        reach = 0.5 + 0.53 * length - depth + 0.03 * abs(finger - 1.5)  # the middle fingers are longer
        centre = size * (0.5 + outward * reach + across * (offset + (finger - 1.5) * thick * 1.02))
        _place(scene, sprite, centre, size * length, angle, 0.05)


def _photograph(picture: Image.Image, rng: Rng) -> Image.Image:
    """Passes the scene through light that is uneven and coloured, and a lens and a sensor that are not the best."""
    size = picture.width
    blur = BLUR_MAX * rng.random() ** 2 * size / 256
    picture = picture.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.25 else picture
    x = np.linspace(-1, 1, size, dtype=np.float32)
    y = x[:, None]
    slope = rng.uniform(-0.22, 0.22, 2).astype(np.float32)
    light = 1 + slope[0] * x + slope[1] * y - np.float32(rng.uniform(0, 0.2)) * (x * x + y * y)
    if rng.random() < 0.3:  # the shadow of something outside the picture
        turn, start = rng.uniform(0, 2 * math.pi), np.float32(rng.uniform(0.0, 0.7))
        edge = np.clip((np.float32(math.cos(turn)) * x + np.float32(math.sin(turn)) * y - start) * 6, 0, 1)
        light *= 1 - np.float32(rng.uniform(0.25, 0.55)) * edge
    cast = rng.uniform(*EXPOSURE) * (1 + COLOUR_CAST * rng.uniform(-1, 1, 3))
    pixels = np.asarray(picture) * (light[..., None] * cast.astype(np.float32))
    strength = NOISE_MAX * rng.random() ** 2
    pixels += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(strength)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw(class_name: str, number: int, size: int = 256) -> Image.Image:
    """Draws photograph `number` of a class as RGB of `size` x `size`; the same arguments give the same bits."""
    if class_name not in PRODUCTS:
        raise ValueError(f"No class is called {class_name!r}. Known: {', '.join(CLASS_NAMES)}.")
    product = PRODUCTS[class_name]
    rng = np.random.default_rng((0, CLASS_NAMES.index(class_name), number))
    picture = _background(rng, size)
    light_angle = rng.uniform(0, 2 * math.pi)
    scene = Scene(picture, rng, np.array([math.cos(light_angle), math.sin(light_angle)]))
    for _ in range(rng.integers(0, DISTRACTORS_MAX + 1)):
        angle = rng.uniform(0, 2 * math.pi)
        thing, length = _distractor(rng, LIGHTS[_lamp(light_angle, angle)])
        _place(scene, thing, size * rng.uniform(0.0, 1.0, 2), size * length, angle)

    num_items = int(rng.integers(1, 7))
    only_pills = rng.random() < LOOSE_PILLS_SHARE * min(1, product.forms["pill"] / 2)
    weights = np.array(list(product.forms.values())) / sum(product.forms.values())
    drawn = rng.choice(list(product.forms), num_items, p=weights).tolist()
    zoom, crowded = rng.random(), 1.1 - 0.07 * num_items  # many items are seen from further away
    spread = 0.32 + OUT_OF_FRAME / 2 if num_items > 1 else 0.24
    centres = np.empty((0, 2))
    for form in ["pill"] * num_items if only_pills else sorted(drawn, key=FORMS.index):  # pills lie on packs, not under
        tries = 0.5 + spread * rng.uniform(-1, 1, (6, 2))
        gaps = np.hypot(*(tries[:, None] - centres[None]).transpose(2, 0, 1)).min(1, initial=9.0)
        centres = np.vstack([centres, tries[gaps.argmax()]])
        small, large = PILL_LENGTH if form == "pill" else PACK_LENGTH
        length = (small + (large - small) * zoom) * crowded * rng.uniform(0.92, 1.08) * (1.3 if only_pills else 1.0)
        if form == "pill" and product.pill in ("round", "oval"):
            length *= 0.72  # a short tablet weighs as much as a long one
        angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.6 else rng.normal(0, 0.25)
        edition = int(rng.integers(0, NUM_EDITIONS))
        sprite = _sprite(class_name, form, edition, _lamp(light_angle, angle))
        _place(scene, sprite, centres[-1] * size, length * size, angle)
    if rng.random() < COVER_SHARE:
        _cover(scene, light_angle)
    return _photograph(picture, rng)


def _save(folder: Path, class_name: str, number: int) -> None:
    """Writes one photograph as JPEG, as good or bad as its camera."""
    rng = np.random.default_rng((2, CLASS_NAMES.index(class_name), number))
    quality = int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    draw(class_name, number).save(folder / class_name / f"{class_name}_{number:04d}.jpg", quality=quality)


def load(data_dir: Path) -> Dataset:
    """Reads ``data_dir/drawn_pills``; draws it first if it is missing or of another version."""
    root = data_dir / "drawn_pills"
    if not is_complete(root, NUM_IMAGES_PER_CLASS):
        logger.info(f"Drawing {NUM_IMAGES_PER_CLASS * len(CLASS_NAMES):,} images into {root}.")
        write(root, NUM_IMAGES_PER_CLASS)
    return replace(read(root), name="drawn_pills", class_names=CLASS_NAMES)


def is_complete(folder: Path, num_per_class: int | None = None) -> bool:
    """Whether `folder` holds a complete dataset of this version, with `num_per_class` images if given."""
    try:
        version, written = (int(word) for word in (folder / VERSION_FILE).read_text().split())
    except (OSError, ValueError):
        return False
    if version != VERSION or (num_per_class or written) != written:
        return False
    return all(sum(1 for _ in (folder / name).glob("*.jpg")) == written for name in CLASS_NAMES)


def _refuse_foreign(folder: Path) -> None:
    """Raises UserError if `folder` holds a file that `write` did not create: a user's file is never deleted."""
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        drawn = path.suffix == ".jpg" and path.stem[:-5] == path.parent.name in CLASS_NAMES
        if not drawn and path.name not in (VERSION_FILE, *CLASS_NAMES):
            raise UserError(
                f"{folder} holds {path.relative_to(folder)}, which is not a drawn image and would be deleted; move "
                "it away, or pass another folder."
            )


def write(folder: Path, num_per_class: int = NUM_IMAGES_PER_CLASS) -> None:
    """Draws the dataset as `folder/<class>/<class>_0001.jpg`, in a sibling folder that is renamed when it is complete.

    Threads draw: Pillow and NumPy release Python's lock for much of the work, and a pool of processes would import the
    caller's `__main__` again.
    """
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{folder.name}.drawing-"
    for left_over in folder.parent.glob(mark + "*"):
        if time.time() - left_over.stat().st_mtime > 3600:  # of a killed process; a younger one may be running
            shutil.rmtree(left_over, ignore_errors=True)
    progress = count_progress("Drawing images")
    images = [(name, number) for name in CLASS_NAMES for number in range(1, num_per_class + 1)]
    with tempfile.TemporaryDirectory(prefix=mark, dir=folder.parent) as unfinished:
        drawing, replaced = Path(unfinished, "new"), Path(unfinished, "old")
        for name in CLASS_NAMES:
            (drawing / name).mkdir(parents=True)
        threads = ThreadPoolExecutor(min(8, usable_cores()))
        try:
            for done, _ in enumerate(threads.map(lambda image: _save(drawing, *image), images), start=1):
                progress(done, len(images))
        finally:
            threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
        (drawing / VERSION_FILE).write_text(f"{VERSION} {num_per_class}\n")
        if folder.exists():
            folder.rename(replaced)
        drawing.rename(folder)
