"""Statistics of several runs: learning curves with their range, time to an accuracy, accuracy, paired tests.

Pure functions of tables (histories, timings, predictions); nothing is read from disk here.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from transfer_learning.errors import Diverged
from transfer_learning.evaluation.ensemble import aligned, is_correct, paired_difference
from transfer_learning.evaluation.intervals import difference_interval

QUANTITIES = ("loss", "accuracy", "val_loss", "val_accuracy")


class Run(NamedTuple):
    """The tables of one finished run."""

    name: str
    seed: int
    history: pd.DataFrame  # one row per epoch, as `with_seconds` returns it
    timings: pd.DataFrame  # one row per epoch: phase, epoch, seconds, images_per_second
    predictions: pd.DataFrame  # of the evaluation split, as `predictions.table` returns it


def with_seconds(history: pd.DataFrame, timings: pd.DataFrame, preparation: Mapping[str, float]) -> pd.DataFrame:
    """The history with a column ``seconds``: the training time at the end of each epoch.

    Of `timings` the last row of an epoch counts. `preparation` is in seconds by phase: computing cached features, and
    compiling.
    """
    took = timings.drop_duplicates("epoch", keep="last").set_index("epoch")["seconds"]
    seconds = history["epoch"].map(took).fillna(0.0)
    ahead = history["phase"].map(dict(preparation)).fillna(0.0).where(~history["phase"].duplicated(), 0.0)
    return history.assign(seconds=(seconds + ahead).cumsum())


def curves(histories: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean learning curve of several runs, one row per epoch.

    Args:
        histories: one or more, as `with_seconds` returns them; some may have stopped early.

    Returns:
        Columns ``epoch``, ``num_runs`` (with this epoch), ``seconds`` (median), and for each of `QUANTITIES` its mean,
        minimum (suffix ``_low``) and maximum (``_high``); NaN where no run has a value.
    """
    by_epoch = pd.concat(histories).groupby("epoch")
    table = pd.DataFrame({"num_runs": by_epoch.size(), "seconds": by_epoch["seconds"].median()})
    for name in QUANTITIES:
        table[[name, f"{name}_low", f"{name}_high"]] = by_epoch[name].agg(["mean", "min", "max"]).to_numpy()
    return table.reset_index()


def reached(history: pd.DataFrame, accuracy: float) -> tuple[int, float] | None:
    """(epoch, seconds) at the end of the first epoch with at least this validation accuracy; None if there is none."""
    rows = history[history["val_accuracy"] >= accuracy]  # False for NaN
    return None if rows.empty else (int(rows["epoch"].iloc[0]), float(rows["seconds"].iloc[0]))


def best_value(history: pd.DataFrame, monitor: str) -> float:
    """The best finite value of `monitor` in the last phase of a history; NaN if there is none."""
    values = history.loc[history["phase"] == history["phase"].iloc[-1], monitor]
    values = values[np.isfinite(values)]
    return float(values.max() if monitor.endswith("accuracy") else values.min())


def best_rate(histories: Mapping[float, pd.DataFrame], monitor: str) -> float:
    """The learning rate whose run has the best value of `monitor`; of several, the lowest.

    Args:
        histories: by learning rate, without the runs that diverged.
        monitor: ``val_loss`` or ``val_accuracy``.

    Raises:
        Diverged: no run has a finite value.
    """
    sign = -1.0 if monitor.endswith("accuracy") else 1.0
    found = {rate: sign * best_value(history, monitor) for rate, history in histories.items()}
    found = {rate: value for rate, value in found.items() if np.isfinite(value)}
    if not found:
        raise Diverged("Training diverged at every learning rate; give lower --learning-rates.")
    return min(found, key=lambda rate: (found[rate], rate))


def mean_accuracy_interval(share: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval (Wilson, 1927) of the mean accuracy of one or more runs on `num_images` images.

    The mean of several runs varies less between samples of images than the accuracy of one run, so the interval is
    conservative; n = images x runs would make it too narrow.
    """
    from scipy.stats import norm

    z = norm.ppf(0.975)
    shrunk = share + z**2 / (2 * num_images)
    half = z * np.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2))
    low, high = ((shrunk + sign * half) / (1 + z**2 / num_images) for sign in (-1, 1))
    return max(0.0, float(low)), min(1.0, float(high))


def sign_flip_p(differences: np.ndarray) -> float:
    """Exact two-sided p-value of Fisher's randomisation test for pairs (The Design of Experiments, 1935, section 21).

    Under the null hypothesis the sign of each image's difference, int (n,), is random; the p-value is the fraction of
    all sign assignments whose sum is at least as far from zero as the observed one. With one run per variant it is
    McNemar's exact test (Psychometrika 12, 1947). With several runs a difference is between their numbers of correct
    predictions, since runs that are evaluated on the same images are not independent.
    """
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    probabilities = np.ones(1)  # of every sum, from the lowest to the highest
    for size, count in zip(sizes, counts, strict=True):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        probabilities = np.convolve(probabilities, flips)
    sums = np.arange(len(probabilities)) - len(probabilities) // 2
    return min(1.0, float(probabilities[np.abs(sums) >= abs(differences.sum())].sum()))


def paired(first: Sequence[Run], second: Sequence[Run]) -> dict[str, Any]:
    """The difference in accuracy between two variants on the same images, over all seeds and for each seed.

    Returns:
        ``difference`` of the mean accuracies, from -1 to 1, with its ``interval`` (95 %, bootstrap over images) and
        ``p_value`` (see `sign_flip_p`); and per seed in ``seeds`` the number of images that only one of the two runs
        classifies correctly, and the ``p_value`` of McNemar's exact test.

    Raises:
        UserError: the runs were evaluated on different images.
    """
    tables = aligned({run.name: run.predictions for run in (*first, *second)})
    both = np.array([is_correct(table) for table in tables]).astype(int)
    differences = both[: len(first)].sum(axis=0) - both[len(first) :].sum(axis=0)
    seeds = []
    for one, other in zip(first, second, strict=True):
        found = paired_difference(before=other.predictions, after=one.predictions)
        only = {"only_first": found["only_after_right"], "only_second": found["only_before_right"]}
        seeds.append({"seed": one.seed, **only, "p_value": found["mcnemar_p"]})
    return {
        "difference": float(differences.mean()) / len(first),
        "interval": difference_interval(differences / len(first)),
        "p_value": sign_flip_p(differences),
        "seeds": seeds,
    }


def pairs(variants: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """`paired` for every two variants, the p-values over all seeds with Bonferroni's correction for their number."""
    combinations = list(itertools.combinations(variants, 2))
    results = []
    for first, second in combinations:
        result = paired(variants[first], variants[second])
        result["p_value"] = min(1.0, len(combinations) * result["p_value"])
        results.append({"first": first, "second": second, **result})
    return results


def summary(runs: Sequence[Run], targets: Sequence[float]) -> dict[str, Any]:
    """The results of one variant in plain numbers, None instead of NaN.

    Args:
        targets: validation accuracies, 0..1, to report the time to.

    Returns:
        ``accuracy`` (mean over the seeds) with ``accuracy_interval`` and ``accuracy_range``; ``reached``, for each
        target: how many seeds reached it (``num_runs``), the median ``epoch`` and ``seconds`` (None if at least half of
        the seeds did not) with their ranges over the seeds that did; ``best_val_accuracy``, the highest of any epoch,
        as median and range; ``epoch_seconds`` and ``images_per_second``, medians by phase; ``curves``; and ``runs``,
        the same for each seed.
    """
    rates = np.array([is_correct(table).mean() for table in aligned({run.name: run.predictions for run in runs})])
    accuracy, num_images = float(rates.mean()), len(runs[0].predictions)
    highest = [float(run.history["val_accuracy"].max()) for run in runs]
    times = pd.concat([run.timings.drop_duplicates("epoch", keep="last") for run in runs])
    by_phase = times.groupby("phase", sort=False)[["seconds", "images_per_second"]].median()
    by_run = [[reached(run.history, accuracy) for accuracy in targets] for run in runs]
    by_target = [_over_runs([found[place] for found in by_run]) for place in range(len(targets))]
    rows = []
    for run, rate, best, found in zip(runs, rates, highest, by_run, strict=True):
        row = {"directory": run.name, "seed": run.seed, "accuracy": float(rate), "best_val_accuracy": _or_none(best)}
        places = [dict(zip(("epoch", "seconds"), place or (None, None), strict=True)) for place in found]
        row |= {"epochs": len(run.history), "seconds": float(run.history["seconds"].iloc[-1])}
        rows.append(row | {"reached": [{"accuracy": a, **place} for a, place in zip(targets, places, strict=True)]})
    mean_curves = curves([run.history for run in runs]).to_dict("records")
    return {
        "num_runs": len(runs),
        "num_images": num_images,
        "accuracy": accuracy,
        "accuracy_interval": list(mean_accuracy_interval(accuracy, num_images)),
        "accuracy_range": [float(rates.min()), float(rates.max())],
        "best_val_accuracy": _or_none(np.median(highest)),
        "best_val_accuracy_range": [_or_none(min(highest)), _or_none(max(highest))],
        "reached": [{"accuracy": value, **found} for value, found in zip(targets, by_target, strict=True)],
        "epoch_seconds": by_phase["seconds"].to_dict(),
        "images_per_second": by_phase["images_per_second"].to_dict(),
        "curves": [{name: _or_none(value) for name, value in row.items()} for row in mean_curves],
        "runs": rows,
    }


def _over_runs(places: Sequence[tuple[int, float] | None]) -> dict[str, Any]:
    """Median and range of (epoch, seconds) over runs; a run that never reached the target counts as the last."""
    there = [place for place in places if place]
    result: dict[str, Any] = {"num_runs": len(there)}
    for column, name in enumerate(("epoch", "seconds")):
        values = [place[column] if place else np.inf for place in places]
        result[name] = _or_none(np.median(values))
        column_there = [place[column] for place in there]
        result[f"{name}_range"] = [min(column_there), max(column_there)] if there else None
    return result


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
