"""The results of a comparison whose runs are finished: numbers, table, figure and page, from the files of the runs."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Column, Table
from rich.text import Text

from transfer_learning.cli import formatting
from transfer_learning.cli.formatting import printable
from transfer_learning.config import PHASES, RunConfig, flat
from transfer_learning.errors import UserError
from transfer_learning.evaluation import predictions
from transfer_learning.experiments.comparison import statistics
from transfer_learning.experiments.comparison.directory import ComparisonDir, Plan
from transfer_learning.reports.page import embedded, write_page
from transfer_learning.storage.files import read_json, write_json, write_text
from transfer_learning.storage.run_directory import RunDir

Format = Callable[[float], str]

SPLITS = {"test": "test images", "val": "validation images"}
TIME_NOTE = (
    "Time to an accuracy includes training, validation, compilation and the computation of features by frozen layers."
)
TIME_DETAILS = (
    "Compilation and features count once per variant, with the longest time over its seeds, because later runs read the "
    "features from the cache. Features that were cached before the comparison, or by another variant, do not count; to "
    "include them, use an empty --cache-dir. Decoding and the final evaluation are not included."
)


def write_results(
    plan: Plan, variants: Mapping[str, RunConfig], tried: Mapping[str, Any], directory: ComparisonDir
) -> dict[str, Any]:
    """Writes every file of the comparison and returns the content of comparison.json.

    Args:
        variants: the configs, with the best learning rates if rates were searched.
        tried: the rows of the learning-rate search by variant; empty without a search.

    Raises:
        UserError: a file of a run is missing or damaged, or the runs were made on different images.
    """
    from transfer_learning.evaluation.figures.curves import comparison
    from transfer_learning.evaluation.figures.style import save

    run_dirs, runs = {}, {}
    for name, config in variants.items():
        run_dirs[name] = [directory.run(name, seed, plan.searched_rate(config)) for seed in plan.seeds]
        searched = [directory.run(name, plan.first_seed, rate) for rate in plan.learning_rates]
        runs[name] = variant_runs(run_dirs[name], searched)
    results = gather_results(plan, variants, tried, run_dirs, runs)
    write_json(directory.results, results)
    write_text(directory.table, table_of_runs(results))
    curves = {name: pd.DataFrame(variant["curves"]).astype(float) for name, variant in results["variants"].items()}
    save(comparison(curves, plan.target_accuracies), directory.figure)
    write_page("experiments/comparison/report.html", page_content(results, variants, directory), directory.page)
    return results


def overview_table(results: Mapping[str, Any]) -> Table:
    """The comparison as a table for the terminal: one row per quantity, one column per variant."""
    header, *rows = overview(results)
    table = Table(*(Column(name, overflow="fold") for name in header), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def variant_runs(run_dirs: Sequence[RunDir], search_dirs: Sequence[RunDir]) -> list[statistics.Run]:
    """Reads the runs of one variant: one per seed, and one per learning rate that was tried; the first of those may
    have filled the cache for the others.
    """
    by_path = {run_dir.path: run_dir for run_dir in (*run_dirs, *search_dirs)}
    finished = [run_dir for run_dir in by_path.values() if run_dir.is_finished]
    # A run that was stopped may have done some work twice, which must not count.
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
    """Reads a CSV file of a run; raises UserError if it is missing or damaged."""
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path} is missing or damaged ({error}); delete {path.parent} to train it again.") from None


def gather_results(
    plan: Plan,
    variants: Mapping[str, RunConfig],
    tried: Mapping[str, Any],
    run_dirs: Mapping[str, Sequence[RunDir]],
    runs: Mapping[str, Sequence[statistics.Run]],
) -> dict[str, Any]:
    """Returns every number of the comparison, ready for JSON; UserError if the runs were made on different images."""
    all_dirs = [run_dir for of_variant in run_dirs.values() for run_dir in of_variant]
    evaluations = {run_dir.path.name: read_json(run_dir.evaluation) for run_dir in all_dirs}
    environments = {run_dir.path.name: read_json(run_dir.environment) for run_dir in all_dirs}
    first, *others = all_dirs
    for other in others:
        one, two = (environments[run_dir.path.name]["dataset"]["fingerprint"] for run_dir in (first, other))
        if one != two:
            raise UserError(
                f"{first.path} and {other.path} were not trained on the same images, labels and splits; restore the "
                "images and delete the wrong run, or start a new comparison with another --run-dir."
            )
    results: dict[str, Any] = {
        "command": plan.command,
        "dataset": next(iter(variants.values())).dataset,
        "split": evaluations[first.path.name]["split"],
        "num_images": len(next(iter(runs.values()))[0].predictions),
        "epochs": next(iter(variants.values())).num_epochs,
        "seeds": list(plan.seeds),
        "target_accuracies": list(plan.target_accuracies),
        "reasons": list(plan.reasons),
        "environment": describe_environments(list(environments.values())),
        "time_note": f"{TIME_NOTE} {TIME_DETAILS}",
        "variants": {},
        "search": dict(tried),
    }
    for name, config in variants.items():
        of_variant = run_dirs[name]
        results["variants"][name] = {
            "backbone": config.backbone,
            "weights": config.weights,
            "learning_rates": {phase: config.phase(phase).learning_rate for phase in config.phases},
            "num_parameters": evaluations[of_variant[0].path.name].get("num_parameters"),
            "num_bytes": of_variant[0].model.stat().st_size,
            **statistics.summary(runs[name], plan.target_accuracies),
        }
    results["pairs"] = statistics.pairs(runs)
    results["conclusions"] = [conclusion(pair, results) for pair in results["pairs"]]
    results["remarks"] = remarks(plan, tried, results)
    return results


def describe_environments(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Device, threads, precision, data and versions of the runs; several values where they differ."""
    rows = []
    for environment in environments:
        device, dataset = environment["device"], environment["dataset"]["fingerprint"][:16]
        row = {"device": device["name"], "threads": device["threads"], "precision": device["precision"]}
        row |= {"dataset fingerprint": dataset, "git commit": environment["git_commit"]}
        rows.append(row | environment["versions"])
    return {name: ", ".join(dict.fromkeys(str(row[name]) for row in rows)) for name in rows[0]}


def conclusion(pair: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """``Accuracy on 246 test images: pretrained 91.1 %, scratch 72.8 %; difference +18.3 points (...)``"""
    first, second = (100 * results["variants"][pair[which]]["accuracy"] for which in ("first", "second"))
    low, high = (100 * end for end in pair["interval"])
    of = f"{results['num_images']:,} {SPLITS[results['split']]}{over_seeds(results)}"
    return (
        f"Accuracy on the same {of}: {pair['first']} {first:.1f} %, {pair['second']} {second:.1f} %; difference "
        f"{100 * pair['difference']:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), "
        f"{'not significant' if pair['p_value'] >= 0.05 else 'significant'} ({format_p(pair['p_value'])})."
    )


def over_seeds(results: Mapping[str, Any]) -> str:
    return f", mean of {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else ""


def format_p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def remarks(plan: Plan, tried: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """Limitations of the results, one sentence each."""
    found = []
    for name, rows in tried.items():
        chosen = next(row["learning_rate"] for row in rows if row["is_chosen"])
        for end, which, beyond in ((max, "highest", "higher"), (min, "lowest", "lower")):
            if len(rows) > 1 and chosen == end(plan.learning_rates):
                extreme = f"{chosen:g}, is the {which} one tried; try {beyond} ones, too."
                found.append(f"The best learning rate of {name}, {extreme}")
    if not has_validation(results):
        found.append(
            "The dataset has no validation images, so there are no validation curves and times to an accuracy."
        )
    if results["split"] != "test":
        found.append(
            "The dataset has no test images: all accuracies are on the validation images, which also selected the best "
            "epochs, so they are too high for all variants."
        )
    return found


def has_validation(results: Mapping[str, Any]) -> bool:
    return any(variant["best_val_accuracy"] is not None for variant in results["variants"].values())


def overview(results: Mapping[str, Any]) -> list[list[str]]:
    """One row per quantity and one column per variant; the first row is the header."""
    variants, seeds = results["variants"], len(results["seeds"])
    rows = [["", *variants]]

    def add(title: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        rows.append([title, *(cell(variant) for variant in variants.values())])

    add("backbone", lambda variant: variant["backbone"])
    weights = {"none": "random", "imagenet": "ImageNet"}
    add("initial weights", lambda variant: weights.get(variant["weights"], variant["weights"]))
    add("learning rate", lambda variant: by_phase(variant["learning_rates"], lambda rate: f"{rate:g}"))
    of = f"n = {results['num_images']:,}{over_seeds(results)}"
    add(f"{results['split']} accuracy, {of}", lambda variant: percent(variant["accuracy"]))
    add("  95 % interval", lambda variant: range_of(variant["accuracy_interval"], percent))
    if seeds > 1:
        add("  range over the seeds", lambda variant: range_of(variant["accuracy_range"], percent))
    add("best validation accuracy", lambda variant: percent(variant["best_val_accuracy"]))
    for place, accuracy in enumerate(results["target_accuracies"] if has_validation(results) else ()):
        reached = (describe_reached(variant["reached"][place], seeds) for variant in variants.values())
        rows.append([f"reaches {100 * accuracy:g} % validation accuracy in", *reached])
    add("parameters", lambda variant: f"{variant['num_parameters']:,}" if variant["num_parameters"] else "–")
    add("size of model.keras", lambda variant: formatting.size(variant["num_bytes"]))
    add("time per epoch", lambda variant: by_phase(variant["epoch_seconds"], formatting.duration))
    add("training images/s", lambda variant: by_phase(variant["images_per_second"], lambda rate: f"{rate:,.0f}"))
    return rows


def by_phase(values: Mapping[str, float], text: Format) -> str:
    """``0.0001``, or with two phases ``0.001 frozen, 0.0001 fine-tune``."""
    if len(values) == 1:
        return text(next(iter(values.values())))
    return ", ".join(f"{text(value)} {phase.replace('_', '-')}" for phase, value in values.items())


def describe_reached(place: Mapping[str, Any], num_seeds: int) -> str:
    """``epoch 3 (2–4), 21 s (18 s–30 s)``, ``not reached``, ``epoch 9, 70 s, by 1 of 3 seeds``"""
    if place["num_runs"] == 0:
        return "not reached"
    seconds, epochs = place["seconds_range"], place["epoch_range"]
    text = "epoch " + span(place["epoch"], epochs, lambda value: f"{value:g}") + ", "
    text += span(place["seconds"], seconds, formatting.duration)
    return text if place["num_runs"] == num_seeds else f"{text}, by {place['num_runs']} of {num_seeds} seeds"


def span(median: float | None, ends: Sequence[float], text: Format) -> str:
    """``3 (2–4)``; the range alone without a median, and one number if all are equal."""
    low, high = map(text, ends)
    if median is None:
        return low if low == high else f"{low}–{high}"
    return text(median) if low == high else f"{text(median)} ({low}–{high})"


def range_of(ends: Sequence[float], text: Format) -> str:
    low, high = map(text, ends)
    return f"{low.removesuffix(' %')}–{high}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def table_of_runs(results: Mapping[str, Any]) -> str:
    """CSV with one row per run; an accuracy that was not reached has empty cells."""
    rows = []
    for name, variant in results["variants"].items():
        of_variant = {field: variant[field] for field in ("backbone", "weights", "num_parameters", "num_bytes")}
        for run in variant["runs"]:
            row = {"variant": name, "seed": run["seed"], **of_variant, f"{results['split']}_accuracy": run["accuracy"]}
            row |= {field: run[field] for field in ("best_val_accuracy", "epochs")}
            row["seconds"] = round(run["seconds"], 3)
            row |= {f"epoch_of_{place['accuracy']:g}": place["epoch"] for place in run["reached"]}
            for place in run["reached"]:
                seconds = place["seconds"]
                row[f"seconds_to_{place['accuracy']:g}"] = None if seconds is None else round(seconds, 3)
            rows.append(row | {"directory": run["directory"]})
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def page_content(
    results: Mapping[str, Any], variants: Mapping[str, RunConfig], directory: ComparisonDir
) -> dict[str, Any]:
    """The values that report.html shows."""
    configs = {name: flat(config) for name, config in variants.items()}
    first = next(iter(configs.values()))
    differs = [name for name in first if any(values[name] != first[name] for values in configs.values())]
    return {
        **results,
        "title": " vs. ".join(results["variants"]),
        "images": SPLITS[results["split"]],
        "paired": results["pairs"],  # base.html has a macro called pairs
        "overview": overview(results),
        "percent": percent,
        "format_p": format_p,
        "picture": embedded(directory.figure),
        "different": [(name, [values[name] for values in configs.values()]) for name in differs],
        "shared": {name: value for name, value in first.items() if name not in differs and name != "seed"},
        "path": shlex.quote(str(directory.path)),
        "files": [path.name for path in (directory.results, directory.table, directory.figure)],
    }
