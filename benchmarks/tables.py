"""The measurements as Markdown tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cases import FIGURES, Case, Figure
from transfer_learning.experiments.measurements import left_out_lines, markdown_table, number


def peer_tables(document: Mapping[str, Any], cases: Sequence[Case]) -> str:
    """One table per case: its figure and those of the whole process, medians (and ranges) of n repeats."""
    parts = []
    for case in cases:
        measured = document["measurements"].get(case.title)
        if not measured:
            continue
        whole = case.figure == "seconds"  # of other figures the flag --seconds decides how long the process takes
        figure = FIGURES[case.figure]
        rows = [
            ("tool", "n", figure.title, "ratio", "process, s", *(["ratio"] if whole else []), "CPU, s", "peak, MB")
            + (("val accuracy",) if any("val_accuracy" in row for rows in measured.values() for row in rows) else ())
        ]
        ours = measured.get(case.entries[0].name)
        for entry in case.entries:
            if not (repeats := measured.get(entry.name)):
                continue
            row = [entry.name, str(len(repeats)), summary(values(repeats, case.figure))]
            row.append(ratio(values(repeats, case.figure), values(ours, case.figure), figure) if ours else "–")
            row.append(summary(process_seconds(repeats)))
            if whole:
                row.append(ratio(process_seconds(repeats), process_seconds(ours), FIGURES["seconds"]) if ours else "–")
            row += [number(statistics.median(values(repeats, key))) for key in ("cpu_seconds", "peak_mb")]
            if len(rows[0]) > len(row):
                accuracy = [repeat["val_accuracy"] for repeat in repeats if "val_accuracy" in repeat]
                row.append(f"{100 * statistics.median(accuracy):.1f} %" if accuracy else "–")
            rows.append(tuple(row))
        parts.append(f"### {case.job}: {case.title}\n\n{markdown_table(rows)}")
    notes = [
        "Medians of n processes (range), in the order A B B A. Ratio: how many times this package is better, by the "
        "medians. Job: without imports. Process: from start to end, with imports; for this package without evaluation, "
        "figures and report, which no other tool makes. CPU: user and system time of all its processes, with our "
        "evaluation. Peak: resident memory of its largest process."
    ]
    return "\n\n".join([*parts, *notes, *left_out_lines(document)])


def values(repeats: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [repeat[name] for repeat in repeats]


def process_seconds(repeats: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from start to trained head, without the evaluation that only our runs make."""
    return [repeat["wall_seconds"] - (repeat.get("evaluate_seconds") or 0.0) for repeat in repeats]


def ratio(theirs: Sequence[float], ours: Sequence[float], figure: Figure) -> str:
    """How many times better `ours` is than `theirs`, by the medians."""
    over, under = statistics.median(theirs), statistics.median(ours)
    if figure.more_is_better:
        over, under = under, over
    return f"{over / under:.2f}" if under else "–"


def summary(numbers: Sequence[float]) -> str:
    """``12.3 (11.9-13.0)``"""
    return f"{number(statistics.median(numbers))} ({number(min(numbers))}-{number(max(numbers))})"
