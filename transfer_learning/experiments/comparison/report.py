"""A comparison whose runs are finished, as numbers, a table, a figure and a page: reads their files, writes its own."""

import base64
import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from transfer_learning.cli import formatting
from transfer_learning.config import PHASES, RunConfig, flat
from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.evaluation.figures.curves import comparison
from transfer_learning.evaluation.figures.style import save
from transfer_learning.experiments.comparison import statistics
from transfer_learning.experiments.comparison.directory import ComparisonDir, Plan
from transfer_learning.reports.page import write_page
from transfer_learning.storage.files import read_json, write_json, write_text
from transfer_learning.storage.run_directory import RunDir

SPLITS = {"test": "test images", "val": "validation images"}
SECONDS_COUNTED = (
    "Time to an accuracy: training and validating, and ahead of a phase's first epoch compiling it and computing what its "
    "frozen layers make of the images."
)
SECONDS_IN_FULL = (
    "The longest time that a run of the variant took ahead of a phase counts for all its seeds, since later runs find features "
    "kept; what was kept from before the comparison, or is shared with another variant, costs nothing (an empty --cache-dir "
    "makes it count). Decoding and the final evaluation are left out."
)


def write_results(
    plan: Plan, variants: Mapping[str, RunConfig], search: Mapping[str, Any], directory: ComparisonDir
) -> str:
    """Writes every file of the comparison.

    Args:
        variants: the configs with the rates that the search has chosen; `search`: what it has found.

    Returns:
        What to print: the table, a sentence for every two variants, and where the page is.

    Raises:
        UserError: a file of a run is missing or damaged, or the runs were not made on the same images.
    """
    run_dirs = {
        name: [directory.run(name, seed, plan.searched_rate(config)) for seed in plan.seeds]
        for name, config in variants.items()
    }
    tried = {name: [directory.run(name, plan.first_seed, rate) for rate in plan.learning_rates] for name in variants}
    runs = {name: variant_runs(run_dirs[name], tried[name]) for name in variants}
    results = document(plan, variants, search, run_dirs, runs)
    write_json(directory.results, results)
    write_text(directory.table, table_of_runs(results))
    curves = {name: pd.DataFrame(variant["curves"]).astype(float) for name, variant in results["variants"].items()}
    save(comparison(curves, plan.reach), directory.figure)
    write_page("experiments/comparison/report.html", page_content(results, variants, directory), directory.page)
    lines = [*aligned(overview(results)), "", *results["conclusions"], *results["remarks"]]
    return "\n".join([*lines, SECONDS_COUNTED, f"Page: {directory.page}"])


# ---------------------------------------------------------------------------------------------------------------------
# From the files of the runs


def variant_runs(run_dirs: Sequence[RunDir], tried: Sequence[RunDir]) -> list[statistics.Run]:
    """The runs of one variant; `tried` are those of its search, whose first may have computed what later ones found kept."""
    finished = [run_dir for run_dir in {run.path: run for run in (*run_dirs, *tried)}.values() if run_dir.is_finished]
    # What a run that was stopped did a second time belongs to no variant.
    unbroken = [run_dir for run_dir in finished if len(read_json(run_dir.environment)["sessions"]) == 1]
    preparation: dict[str, float] = {}
    for evaluation in (read_json(run_dir.evaluation) for run_dir in unbroken or finished):
        for phase in PHASES:
            seconds = (evaluation.get(phase) or {}).get("preparation_seconds", 0.0)
            preparation[phase] = max(seconds, preparation.get(phase, 0.0))
    runs = []
    for run_dir in run_dirs:
        timings = read_table(run_dir.timings)
        history = statistics.with_seconds(read_table(run_dir.history), timings, preparation)
        table = predictions.read(run_dir.predictions(read_json(run_dir.evaluation)["split"]))
        runs.append(statistics.Run(run_dir.path.name, run_dir.read_config().seed, history, timings, table))
    return runs


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(
            f"{path} is missing or damaged ({error}); delete {path.parent}, and it is trained anew."
        ) from None


def document(
    plan: Plan,
    variants: Mapping[str, RunConfig],
    search: Mapping[str, Any],
    run_dirs: Mapping[str, Sequence[RunDir]],
    runs: Mapping[str, Sequence[statistics.Run]],
) -> dict[str, Any]:
    """Every number of the comparison, ready for JSON.

    Raises:
        UserError: the runs were not made on the same images.
    """
    all_dirs = [run_dir for of_variant in run_dirs.values() for run_dir in of_variant]
    evaluations = {run_dir.path.name: read_json(run_dir.evaluation) for run_dir in all_dirs}
    environments = {run_dir.path.name: read_json(run_dir.environment) for run_dir in all_dirs}
    first, *others = all_dirs
    for other in others:
        one, two = (environments[run_dir.path.name]["dataset"]["fingerprint"] for run_dir in (first, other))
        if one != two:
            raise UserError(
                f"{first.path} and {other.path} were not trained on the same images, labels and splits; restore the images "
                "and delete the run that is wrong, or compare anew with another --run-dir."
            )
    results = {
        "command": plan.command,
        "dataset": next(iter(variants.values())).dataset,
        "split": evaluations[first.path.name]["split"],
        "num_images": len(next(iter(runs.values()))[0].predictions),
        "epochs": next(iter(variants.values())).num_epochs,
        "seeds": list(plan.seeds),
        "reach": list(plan.reach),
        "reasons": list(plan.reasons),
        "environment": environment_in_words(list(environments.values())),
        "seconds_counted": f"{SECONDS_COUNTED} {SECONDS_IN_FULL}",
        "variants": {},
        "search": dict(search),
    }
    for name, config in variants.items():
        of_variant = run_dirs[name]
        results["variants"][name] = {
            "backbone": config.backbone,
            "weights": config.weights,
            "learning_rates": {phase: config.phase(phase).learning_rate for phase in phases(config)},
            "num_parameters": evaluations[of_variant[0].path.name].get("num_parameters"),
            "num_bytes": of_variant[0].model.stat().st_size,
            **statistics.summary(runs[name], plan.reach),
        }
    results["pairs"] = statistics.pairs(runs)
    results["conclusions"] = [conclusion(pair, results) for pair in results["pairs"]]
    results["remarks"] = remarks(plan, search, results)
    return results


def phases(config: RunConfig) -> list[str]:
    return [phase for phase in PHASES if config.phase(phase).epochs]


def environment_in_words(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the runs were made on; several values where they differ."""
    rows = [
        {
            "device": environment["device"]["name"],
            "threads": environment["device"]["threads"],
            "precision": environment["device"]["precision"],
            "dataset fingerprint": environment["dataset"]["fingerprint"][:16],
            "git commit": environment["git_commit"],
            **environment["versions"],
        }
        for environment in environments
    ]
    return {name: ", ".join(dict.fromkeys(str(row[name]) for row in rows)) for name in rows[0]}


# ---------------------------------------------------------------------------------------------------------------------
# In words


def conclusion(pair: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """``pretrained is right on 91.1 % and scratch on 72.8 % of the same 246 test images: ...``"""
    ours, theirs = (100 * results["variants"][pair[which]]["accuracy"] for which in ("first", "second"))
    low, high = (100 * end for end in pair["interval"])
    of = f"{results['num_images']:,} {SPLITS[results['split']]}{over_seeds(results)}"
    return (
        f"{pair['first']} is right on {ours:.1f} % and {pair['second']} on {theirs:.1f} % of the same {of}: "
        f"{100 * pair['difference']:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), "
        f"{'that may be chance' if pair['p_value'] >= 0.05 else 'hardly by chance'} ({p_in_words(pair['p_value'])})."
    )


def over_seeds(results: Mapping[str, Any]) -> str:
    return f", mean of {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else ""


def p_in_words(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def remarks(plan: Plan, search: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """What somebody who reads the numbers has to know."""
    found = []
    for name, tried in search.items():
        chosen = next(row["learning_rate"] for row in tried if row["is_chosen"])
        for end, which in ((max, "highest"), (min, "lowest")):
            if len(tried) > 1 and chosen == end(plan.learning_rates):
                found.append(
                    f"The best learning rate of {name}, {chosen:g}, is the {which} that was tried; one beyond may be better."
                )
    if not has_validation(results):
        found.append("No accuracy is told epoch by epoch, nor the time to one: the dataset has no validation images.")
    if results["split"] != "test":
        found.append(
            "The dataset has no test images, so all accuracies are of the validation images, by which the best epochs were "
            "chosen too: they flatter all variants."
        )
    return found


def has_validation(results: Mapping[str, Any]) -> bool:
    return any(variant["best_val_accuracy"] is not None for variant in results["variants"].values())


def overview(results: Mapping[str, Any]) -> list[list[str]]:
    """A row a quantity and a column a variant; the first row is the heading."""
    variants, seeds = results["variants"], len(results["seeds"])
    rows = [["", *variants]]

    def add(title: str, cell) -> None:
        rows.append([title, *(cell(variant) for variant in variants.values())])

    add("network", lambda variant: variant["backbone"])
    add(
        "weights at the start",
        lambda variant: {"none": "random", "imagenet": "ImageNet"}.get(variant["weights"], variant["weights"]),
    )
    add("learning rate", lambda variant: by_phase(variant["learning_rates"], lambda rate: f"{rate:g}"))
    of = f"n = {results['num_images']:,}{over_seeds(results)}"
    add(f"{results['split']} accuracy, {of}", lambda variant: percent(variant["accuracy"]))
    add("  95 % interval", lambda variant: range_of(variant["accuracy_interval"], percent))
    if seeds > 1:
        add("  range over the seeds", lambda variant: range_of(variant["accuracy_range"], percent))
    add("best validation accuracy", lambda variant: percent(variant["best_val_accuracy"]))
    for place, accuracy in enumerate(results["reach"] if has_validation(results) else ()):
        title = f"validation accuracy {100 * accuracy:g} %"
        add(title, lambda variant, place=place: reached_in_words(variant["reached"][place], seeds))
    add("parameters", lambda variant: f"{variant['num_parameters']:,}" if variant["num_parameters"] else "–")
    add("size of model.keras", lambda variant: formatting.size(variant["num_bytes"]))
    add("time an epoch", lambda variant: by_phase(variant["epoch_seconds"], formatting.duration))
    add("training images a second", lambda variant: by_phase(variant["images_per_second"], lambda rate: f"{rate:,.0f}"))
    return rows


def by_phase(values: Mapping[str, float], text) -> str:
    """``0.0001``, or with two phases ``0.001 frozen, 0.0001 fine-tune``."""
    if len(values) == 1:
        return text(next(iter(values.values())))
    return ", ".join(f"{text(value)} {phase.replace('_', '-')}" for phase, value in values.items())


def reached_in_words(place: Mapping[str, Any], num_seeds: int) -> str:
    """``epoch 3 (2–4), 21 s (18 s–30 s)``, ``not reached``, ``epoch 9, 70 s, by 1 of 3 seeds``"""
    if place["num_runs"] == 0:
        return "not reached"
    seconds, epochs = place["seconds_range"], place["epoch_range"]
    text = "epoch " + span(place["epoch"], epochs, lambda value: f"{value:g}") + ", "
    text += span(place["seconds"], seconds, formatting.duration)
    return text if place["num_runs"] == num_seeds else f"{text}, by {place['num_runs']} of {num_seeds} seeds"


def span(median: float | None, ends: Sequence[float], text) -> str:
    """``3 (2–4)``; the range alone where there is no median, and no range of equals."""
    low, high = map(text, ends)
    if median is None:
        return low if low == high else f"{low}–{high}"
    return text(median) if low == high else f"{text(median)} ({low}–{high})"


def range_of(ends: Sequence[float], text) -> str:
    low, high = map(text, ends)
    return f"{low.removesuffix(' %')}–{high}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def table_of_runs(results: Mapping[str, Any]) -> str:
    """CSV with a row a run; what was not reached is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    reach = [f"{accuracy:g}" for accuracy in results["reach"]]
    writer.writerow(
        [
            "variant",
            "seed",
            "backbone",
            "weights",
            "num_parameters",
            "num_bytes",
            f"{results['split']}_accuracy",
            "best_val_accuracy",
            "epochs",
            "seconds",
            *(f"epoch_of_{text}" for text in reach),
            *(f"seconds_to_{text}" for text in reach),
            "directory",
        ]
    )
    for name, variant in results["variants"].items():
        for run in variant["runs"]:
            writer.writerow(
                [
                    name,
                    run["seed"],
                    variant["backbone"],
                    variant["weights"],
                    variant["num_parameters"],
                    variant["num_bytes"],
                    run["accuracy"],
                    run["best_val_accuracy"],
                    run["epochs"],
                    round(run["seconds"], 3),
                    *(place["epoch"] for place in run["reached"]),
                    *(None if place["seconds"] is None else round(place["seconds"], 3) for place in run["reached"]),
                    run["directory"],
                ]
            )
    return file.getvalue()


def page_content(
    results: Mapping[str, Any], variants: Mapping[str, RunConfig], directory: ComparisonDir
) -> dict[str, Any]:
    """Everything that the template shows."""
    configs = {name: flat(config) for name, config in variants.items()}
    first = next(iter(configs.values()))
    differs = [name for name in first if any(values[name] != first[name] for values in configs.values())]
    return {
        **results,
        "title": " against ".join(results["variants"]),
        "images": SPLITS[results["split"]],
        "overview": overview(results),
        "p_in_words": p_in_words,
        "picture": base64.b64encode(directory.figure.read_bytes()).decode(),
        "different": [(name, [values[name] for values in configs.values()]) for name in differs],
        "common": {name: value for name, value in first.items() if name not in differs and name != "seed"},
        "path": shlex.quote(str(directory.path)),
        "files": [path.name for path in (directory.results, directory.table, directory.figure)],
    }
