"""What a person sees while a run trains: a bar on a terminal, a line an epoch anywhere."""

import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, TextColumn

from transfer_learning.cli.formatting import duration

REFRESH_SECONDS = 0.25  # on a terminal
LINE_SECONDS = 30  # elsewhere


class EpochProgress:
    """Shows the epochs of a run and measures their speed.

    On a terminal a bar moves while an epoch lasts; elsewhere (a file, a notebook, a log) there are lines only.

    Args:
        trained: called at the beginning of each epoch with 0 and None, and after updates with the number of their images
            and the learning rate of the last one.
    """

    def __init__(self, trained: Callable[[int, float | None], None] = lambda num_images, learning_rate: None):
        self._trained = trained
        self._bar = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, transient=True)
            self._task = self._bar.add_task("", figures="", total=None)
        self._shown = 0.0

    def __enter__(self) -> "EpochProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        if self._bar:
            self._bar.stop()

    def start_epoch(self, title: str, num_images: int, num_done: int) -> None:
        """Begins an epoch of `num_images`, of which a stopped session may have done `num_done`."""
        self._title, self._num_images, self._first, self._done = title, num_images, num_done, num_done
        self._started = self._shown = time.monotonic()
        self._trained(0, None)
        if self._bar:
            self._bar.update(self._task, description=title, total=num_images, completed=num_done, figures="")

    def add_images(self, count: int, learning_rate: float, figures: Callable[[], dict[str, float]]) -> None:
        """Counts images; `figures`, loss and accuracy, is called only when it is time to show them."""
        self._done += count
        self._trained(count, learning_rate)
        now = time.monotonic()
        if self._bar and now - self._shown >= REFRESH_SECONDS:
            self._shown = now
            rate = (self._done - self._first) / (now - self._started)
            left = (self._num_images - self._done) / rate
            shown = "  ".join(f"{name} {value:.4f}" for name, value in figures().items())
            text = f"{rate:,.0f} images/s  {shown}  {duration(left)} left"
            self._bar.update(self._task, completed=self._done, figures=text)

    def end_epoch(self, row: dict, timing: dict, is_best: bool, epochs_left: int) -> None:
        """Prints the line of a finished epoch."""
        seconds = timing["seconds"]
        left = f"  {duration(seconds * epochs_left)} left at most" if epochs_left else ""
        print(
            f"{self._title}  {duration(seconds)}  {timing['images_per_second']:,.0f} images/s  "
            f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
            f"val_loss {row['val_loss']:.4f}  val_accuracy {row['val_accuracy']:.4f}{'  best' if is_best else ''}{left}",
            flush=True,
        )


def count_progress(title: str) -> Callable[[int, int], None]:
    """Returns a function of (done, total) that shows how far something is: at once on a terminal, else now and then."""
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        on_terminal = sys.stdout.isatty()
        if time.monotonic() - shown < (REFRESH_SECONDS if on_terminal else LINE_SECONDS) and done < total:
            return
        shown = time.monotonic()
        text = f"{title} {done:,} of {total:,}"
        if on_terminal:
            print(f"\r{text}", end="" if done < total else "\r\x1b[K", flush=True)
        elif done < total:
            print(text, flush=True)

    return show
