"""What `evaluate --paired` found, as one page: two runs on the same images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_learning.evaluation import ensemble
from transfer_learning.reports.page import write_page

NUM_NAMED = 50  # images of each list; a page is read by a person


def write_paired(comparison: Mapping[str, Any], results: Path, path: Path) -> None:
    """Writes the page of a comparison.

    Args:
        comparison: what `members.compare_pair` returns and `results`, a file, holds.
    """
    sentence = ensemble.describe(comparison, "A", "B")  # names of directories are long
    content = {**comparison, "sentence": sentence, "num_named": NUM_NAMED, "results": results.name}
    write_page("paired.html", content, path)
