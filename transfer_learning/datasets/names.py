"""Names that people, or some systems, take for one."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff]")


def folded(name: str) -> str:
    """A name without case, accents and letter width."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def folded_label(name: str) -> str:
    """The same without differences in spaces, underscores and hyphens between letters; 01 and 1.0 are 1."""
    words = re.sub(r"[\s_]+|(?<=[^\W\d_])-(?=[^\W\d_])", " ", INVISIBLE.sub("", folded(name))).strip()
    return str(int(words.partition(".")[0])) if re.fullmatch(r"[0-9]+(\.0+)?", words) else words


def alike(names: Sequence[str], fold: Callable[[str], str] = folded) -> list[list[int]]:
    """The positions of different names that are equal when folded, one list per such name."""
    positions: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for position, name in enumerate(names):
        positions[fold(name)].setdefault(name, position)  # ignored entries may repeat a name
    return [list(same.values()) for same in positions.values() if len(same) > 1]
