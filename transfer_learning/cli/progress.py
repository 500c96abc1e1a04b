"""What a person sees while a run trains: a bar on a terminal, one line per epoch anywhere."""

import logging
import math
import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from transfer_learning.cli.console import console
from transfer_learning.cli.formatting import duration

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 0.25  # between two looks at loss and accuracy, for which a GPU has to be waited for
LINE_SECONDS = 30  # between two lines of `count_progress` where there is no terminal


class EpochProgress:
    """Shows the epochs of a run and measures their speed: a bar on a terminal; elsewhere (a file, a notebook) only
    lines.

    `trained` is called at the beginning of each epoch with 0 and None, and after train steps with the number of their
    images and the last learning rate.
    """

    def __init__(self, trained: Callable[[int, float | None], None] = lambda num_images, learning_rate: None):
        self._trained = trained
        columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", figures="", total=None)
        self._shown = 0.0

    def __enter__(self) -> "EpochProgress":
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def start_epoch(self, title: str, num_images: int, num_done: int) -> None:
        """Begins an epoch of `num_images`, of which a stopped session may have done `num_done`."""
        self._title, self._num_images, self._first, self._done = title, num_images, num_done, num_done
        self._started = self._shown = time.monotonic()
        self._trained(0, None)
        self._bar.update(self._task, description=title, total=num_images, completed=num_done, figures="")

    def add_images(self, count: int, learning_rate: float, figures: Callable[[], dict[str, float]]) -> None:
        """Counts images; `figures`, loss and accuracy, is called only when it is time to show them."""
        self._done += count
        self._trained(count, learning_rate)
        now = time.monotonic()
        if not self._bar.disable and now - self._shown >= REFRESH_SECONDS:
            self._shown = now
            rate = (self._done - self._first) / (now - self._started)
            left = (self._num_images - self._done) / rate
            shown = "  ".join(f"{name} {value:.4f}" for name, value in figures().items())
            text = f"{rate:,.0f} images/s  {shown}  {duration(left)} left"
            self._bar.update(self._task, completed=self._done, figures=text)

    def end_epoch(self, row: dict, timing: dict, is_best: bool, epochs_left: int) -> None:
        """Logs the line of a finished epoch."""
        seconds = timing["seconds"]
        left = f"  {duration(seconds * epochs_left)} left at most" if epochs_left else ""
        names = ("loss", "accuracy", "val_loss", "val_accuracy")  # the last two are NaN without validation images
        shown = "  ".join(f"{name} {row[name]:.4f}" for name in names if not math.isnan(row[name]))
        logger.info(
            f"{self._title}  {duration(seconds)}  {timing['images_per_second']:,.0f} images/s  {shown}"
            f"{'  best' if is_best else ''}{left}"
        )


def count_progress(title: str) -> Callable[[int, int], None]:
    """Returns a function of (done, total) that shows a bar on a terminal, and a line now and then elsewhere."""
    columns = TextColumn(title), BarColumn(20), MofNCompleteColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, shown = bar.add_task(title, total=None), time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if bar.disable:
            if time.monotonic() - shown >= LINE_SECONDS and done < total:
                shown = time.monotonic()
                logger.info(f"{title}: {done:,} of {total:,}")
            return
        if done < total:
            bar.start()
            bar.update(task, completed=done, total=total)
        else:
            bar.stop()

    return show
