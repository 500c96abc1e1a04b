"""README.md beside exported files: a model card with the header that the Hugging Face Hub reads, results and snippets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from transfer_learning import __version__
from transfer_learning.cli.formatting import duration, printable, size
from transfer_learning.errors import needs_extra
from transfer_learning.exports.formats import FORMATS
from transfer_learning.exports.metadata import Metadata
from transfer_learning.storage.files import write_text


def write_card(
    path: Path,
    metadata: Metadata,
    evaluation: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Writes the card.

    Args:
        evaluation: the content of ``evaluation.json``.
        rows: the results of the gate, of the files that are there.
        about: ``dataset``, ``backbone``, ``weights_licence``, ``images_licence``, ``counts`` by split or None.

    Raises:
        MissingExtra: huggingface_hub is not installed.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "cell": _cell, "size": size}
    environment.filters |= {
        "duration": duration,
        "number": lambda value: f"{value:.3g}" if value < 100 else f"{value:,.0f}",
    }
    per_class = evaluation.get("per_class") or {}
    known = ("macro_f1", "macro_f1_interval", "top_5_accuracy", "top_5_interval", "calibration")
    body = environment.get_template("model_card.md").render(
        {name: _cell(value) if isinstance(value, str) else value for name, value in about.items()},
        version=__version__,
        class_names=metadata.class_names,
        image_size=metadata.image_size,
        resize=metadata.resize,
        temperature=metadata.temperature,
        rejection_threshold=metadata.rejection_threshold,
        weights_sha256=metadata.weights_sha256,
        evaluation=dict.fromkeys(known) | dict(evaluation),
        split={"val": "validation"}.get(evaluation["split"], evaluation["split"]),
        f1=[per_class[name]["f1"] for name in metadata.class_names]
        if set(metadata.class_names) <= set(per_class)
        else None,
        rows=[(FORMATS[row["format"]], row | {"snippet": FORMATS[row["format"]].snippet(metadata)}) for row in rows],
        remarks=remarks(rows),
    )
    write_text(path, f"---\n{_header(evaluation, about)}\n---\n\n{body}")


def remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Says where an integer format is slower or worse than the float format of the same runtime."""
    by_name = {row["format"]: row for row in rows}
    found = []
    for name, row in by_name.items():
        base = by_name.get(name.removesuffix("-int8"))
        if base is row or base is None:
            continue
        speed = row["images_per_second"]["1"] / base["images_per_second"]["1"]
        words = "faster than" if speed >= 1.05 else "slower than" if speed <= 0.95 else "as fast as"
        low, high = row["difference_interval"]
        found.append(
            f"`{row['file']}` is {words} `{base['file']}` here (batch 1, {speed:.2f} times its images/s); its accuracy on "
            f"the same images differs by {100 * row['difference']:+.2f} points "
            f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})."
        )
    return found


def _header(evaluation: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The YAML that the Hub shows as a table of results."""
    with needs_extra("export"):
        from huggingface_hub import EvalResult, ModelCardData

    dataset = printable(about["dataset"])
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=evaluation["split"],
            metric_type=metric,
            metric_name=title,
            metric_value=round(evaluation[key], 4),
        )
        for key, metric, title in (("accuracy", "accuracy", "accuracy"), ("macro_f1", "f1", "macro F1"))
        if evaluation.get(key) is not None
    ]
    data = ModelCardData(
        license="other",
        license_name="see-licences",
        library_name="keras",
        pipeline_tag="image-classification",
        datasets=[dataset.removeprefix("hf:")] if dataset.startswith("hf:") else None,
        metrics=["accuracy", "f1"],
        tags=["transfer-learning"],
        model_name=dataset,
        eval_results=results,
    )
    return data.to_yaml(line_break="\n")


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


def _interval(ends: Sequence[float] | None) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %" if ends else "–"


def _cell(text: str) -> str:
    """A name in a table of Markdown: names may hold pipes, line ends, markup and bytes that are not UTF-8."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in printable(text))
