"""The report of `evaluate --paired`: two runs on the same images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_learning.evaluation import ensemble
from transfer_learning.reports.page import write_page

NUM_NAMED = 50  # images in a list


def write_paired(comparison: Mapping[str, Any], results: Path, path: Path) -> None:
    """Writes the report of a paired comparison, the result of `ensembles.compare_pair`, which is in the JSON file
    `results`.
    """
    sentence = ensemble.describe(comparison, "A", "B")
    content = {**comparison, "sentence": sentence, "num_named": NUM_NAMED, "results": results.name}
    write_page("paired.html", content, path)
