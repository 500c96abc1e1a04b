"""What all figures share: fonts, colours, file format. The same input gives the same bytes; no global state."""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transfer_learning.evaluation.figures import DOTS_PER_INCH
from transfer_learning.storage.files import written_atomically

# Colours that people with any kind of colour blindness can distinguish (Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"

# The first is part of matplotlib; the others add other scripts where they are installed.
FONTS = (
    "DejaVu Sans, Noto Sans CJK JP, Noto Sans CJK SC, Noto Sans, Noto Sans Arabic, Noto Sans Devanagari, "
    "WenQuanYi Zen Hei, Arial Unicode MS, Hiragino Sans, Microsoft YaHei, Malgun Gothic"
).split(", ")
LONGEST_NAME = 28  # characters


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, atomically; the same figure gives the same bytes."""
    picture = io.BytesIO()
    # No metadata, which would name matplotlib's version; at level 1 photos take half the time and a tenth more bytes.
    options: dict[str, Any] = dict(format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    box = "tight" if figure.get_layout_engine() else None  # which draws twice
    with settings():
        figure.savefig(picture, dpi=DOTS_PER_INCH, facecolor="white", bbox_inches=box, **options)
    with written_atomically(Path(path)) as temporary:
        temporary.write_bytes(picture.getvalue())


def readable(names: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """Returns names on one line each, long ones shortened in the middle.

    A name with a character that no installed font has becomes ``3: caf?``, with its position in `names` counted from 0
    and a question mark for each such character, or ``class 3`` if nothing is left of it.
    """
    drawable = _drawable_characters()
    return [_readable(" ".join(name.split()), number, drawable, longest) for number, name in enumerate(names)]


def without_font(names: Sequence[str]) -> list[tuple[int, str]]:
    """The position and name of each name with a character that no installed font has."""
    return [
        (number, name) for number, name in enumerate(names) if not set("".join(name.split())) <= _drawable_characters()
    ]


def _readable(line: str, number: int, drawable: frozenset[str], longest: int) -> str:
    if line and set(line) <= drawable:
        return shortened(line, longest)
    left = "".join(letter if letter in drawable else "?" for letter in line)
    return shortened(f"{number}: {left}", longest) if any(map(str.isalnum, left)) else f"class {number}"


def settings() -> AbstractContextManager[None]:
    """Returns a context with matplotlib's default settings, whatever the user's matplotlibrc says."""
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return matplotlib.rc_context({**own, "font.family": _installed_fonts(), "font.size": 10})


def _installed_fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return [font for font in FONTS if font in installed]


@cache
def _drawable_characters() -> frozenset[str]:
    return frozenset(
        chr(code)
        for font in _installed_fonts()
        for code in font_manager.get_font(font_manager.findfont(font)).get_charmap()
    )


def shortened(text: str, longest: int) -> str:
    """Leaves out the middle of a text: names that differ often differ at the ends."""
    return text if len(text) <= longest else f"{text[: (longest - 1) * 2 // 3]}…{text[-((longest - 1) // 3) :]}"


def finite(values: pd.Series) -> pd.Series:
    """Returns numbers, NaN in place of anything that is not a finite number."""
    return pd.to_numeric(values, errors="coerce").where(np.isfinite)


def scale_by_span(axes: Axes, values: pd.Series) -> None:
    """Makes the y axis logarithmic if the positive values span more than a factor of 20; zeros stay visible."""
    positive = values[values > 0]
    if len(positive) == 0 or positive.max() <= 20 * positive.min():
        axes.set_ylim(bottom=0)
    elif (values == 0).any():
        axes.set_yscale("symlog", linthresh=positive.min())
    else:
        axes.set_yscale("log")


def clean_axes(*panels: Axes) -> None:
    """Draws a light grid behind the data and no frame above and to the right."""
    for axes in panels:
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
