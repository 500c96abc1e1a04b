"""What was measured, as tables of Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_learning.peers.cases import FIGURES, Case, Figure


def device_table(document: Mapping[str, Any]) -> str:
    rows = [
        (
            "device",
            "precision",
            "extraction, images/s",
            "training, images/s",
            "epoch, s",
            "largest batch",
            "peak memory, MB",
        )
    ]
    for name, figures in document["measurements"].items():
        rows.append(
            (
                f"{name}: {figures['name']}",
                figures["precision"],
                spread(figures["extraction"]),
                spread(figures["training"]),
                f"{figures['epoch_seconds']:.1f}",
                figures["largest_batch_in_words"],
                f"{figures['device_peak_mb']:,.0f} ({figures['memory']})",
            )
        )
    some = next(iter(document["measurements"].values()), None)
    if some is None:
        return "Nothing was measured."
    notes = [
        f"Recipe {document['settings']['dataset']}: {some['what']}. Rates are medians (and ranges) over {some['windows']} "
        f"stretches of {number(some['window_seconds'])} s after a warm-up. Extraction: the frozen graph, batch 32. Training: "
        "updates of the fine-tune phase with the recipe's batch, open layers and augmentation, images in memory. Epoch: "
        f"{some['num_train']:,} training images, and {some['num_val']:,} for validation.",
        *dict.fromkeys(figures["how_largest_batch"] for figures in document["measurements"].values()),
    ]
    if set(document["measurements"]) == {"CPU"}:
        notes.insert(0, "TensorFlow sees no GPU on this machine, so there is nothing to compare the processor with.")
    return markdown(rows) + "\n\n" + "\n\n".join([*notes, *left_out_in_words(document)])


def spread(figures: Mapping[str, float]) -> str:
    return f"{number(figures['median'])} ({number(figures['least'])}-{number(figures['most'])})"


def peer_tables(document: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """A table a case: its figure and those of the whole process, each the median (and the range) of n repeats."""
    parts = []
    for case in cases:
        measured = document["measurements"].get(case.title)
        if not measured:
            continue
        whole = case.figure == "seconds"  # elsewhere the process lasts as long as it was told to
        figure = FIGURES[case.figure]
        rows = [
            ("side", "n", figure.title, "ratio", "process, s", *(["ratio"] if whole else []), "CPU, s", "peak, MB")
            + (("val accuracy",) if any("val_accuracy" in row for rows in measured.values() for row in rows) else ())
        ]
        ours = measured.get(case.sides[0].name)
        for side in case.sides:
            if not (repeats := measured.get(side.name)):
                continue
            row = [side.name, str(len(repeats)), summary(values(repeats, case.figure))]
            row.append(ratio(values(repeats, case.figure), values(ours, case.figure), figure) if ours else "–")
            row.append(summary(process_seconds(repeats)))
            if whole:
                row.append(ratio(process_seconds(repeats), process_seconds(ours), FIGURES["seconds"]) if ours else "–")
            row += [number(statistics.median(values(repeats, key))) for key in ("cpu_seconds", "peak_mb")]
            if len(rows[0]) > len(row):
                accuracy = [repeat["val_accuracy"] for repeat in repeats if "val_accuracy" in repeat]
                row.append(f"{100 * statistics.median(accuracy):.1f} %" if accuracy else "–")
            rows.append(tuple(row))
        parts.append(f"### {case.job}: {case.title}\n\n{markdown(rows)}")
    notes = [
        "Medians of n processes (least-most), in the order A B B A. Ratio: how many times we are better, by the medians. "
        "Job: without imports. Process: from its start to its end with imports; ours without evaluating the whole model, "
        "figures and report, which no other side does, wherever the run says how long they took. CPU: user and system of "
        "all its processes, our evaluation included. Peak: resident memory of its largest process."
    ]
    return "\n\n".join([*parts, *notes, *left_out_in_words(document)])


def values(repeats: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [repeat[name] for repeat in repeats]


def process_seconds(repeats: Sequence[Mapping[str, Any]]) -> list[float]:
    """From start to trained head: the evaluation that follows in our run alone is taken off."""
    return [repeat["wall_seconds"] - (repeat.get("evaluate_seconds") or 0.0) for repeat in repeats]


def ratio(theirs: Sequence[float], ours: Sequence[float], figure: Figure) -> str:
    """How many times ours is better than theirs, by the medians."""
    over, under = statistics.median(theirs), statistics.median(ours)
    if figure.more_is_better:
        over, under = under, over
    return f"{over / under:.2f}" if under else "–"


def summary(numbers: Sequence[float]) -> str:
    """``12.3 (11.9-13.0)``"""
    return f"{number(statistics.median(numbers))} ({number(min(numbers))}-{number(max(numbers))})"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def heading(document: Mapping[str, Any]) -> str:
    session, of = document["sessions"][-1], document["machine"]
    installed = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    sizes = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in document["settings"].items())
    by_itself = "on" if of["onednn_by_itself"] else "off"
    return "\n".join(
        [
            f"* Hardware: {of['processor']}, {of['cores']} cores, {of['memory_gb']} GB of memory. TensorFlow by itself has "
            f"oneDNN {by_itself} here; we turn it on everywhere.",
            f"* Versions: {installed}",
            f"* Command: `{session['command']}`, {session['started'][:10]} ({sizes})",
        ]
    )


def left_out_in_words(document: Mapping[str, Any]) -> list[str]:
    return [f"Left out: {name} ({reason})." for name, reason in document["left_out"].items()]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first row is its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
