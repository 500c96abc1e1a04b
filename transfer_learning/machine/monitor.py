"""What the machine does while a run works: processors, memory, disks, GPUs and images/s, sampled by a thread.

It watches and warns, and does nothing else: it decides no result, and what fails here ends no run.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from transfer_learning.cli.formatting import duration, size
from transfer_learning.machine import gpus, resources
from transfer_learning.storage.files import existing_part, written_atomically

logger = logging.getLogger(__name__)

SHORTEST, LONGEST = 1.0, 10.0  # seconds from one sample to the next
SAMPLES_PER_TENFOLD = 100  # so that ten seconds have ten samples, and a day is no large file
LARGEST_SHARE = 0.002  # of one processor's time, that sampling may take
JOIN_SECONDS = 10  # a driver that hangs must not keep a finished run from ending

COLUMNS = (
    "time",
    "session",
    "stage",
    "images_per_second",
    "learning_rate",
    "cpu_percent",
    "process_cpu_percent",
    "memory_total_mb",
    "memory_available_mb",
    "process_memory_mb",
    "disk_read_mb_per_second",
    "disk_write_mb_per_second",
    "run_disk_free_gb",
    "cache_disk_free_gb",
)
TEXTS = ("time", "stage", "throttled_by")

LOW_MEMORY = 0.05  # of all, left
FULL_GPU = 0.95  # of its memory, in use
LOW_DISK = 1e9  # bytes left
NEAR_SLOWDOWN = 3  # °C below it
SUSTAINED = 3  # samples in a row with a lowered clock


def pause(elapsed: float, cost: float) -> float:
    """Seconds until the next sample, `elapsed` seconds after the first one, if the last one took `cost` of processor time."""
    return max(min(max(elapsed / SAMPLES_PER_TENFOLD, SHORTEST), LONGEST), cost / LARGEST_SHARE)


class Monitor:
    """Appends a row to a table now and then while it is used as a context manager, and says what needs attention.

    A row has the columns COLUMNS, and for each GPU ``gpu0_`` before each of `gpus.FIGURES`, numbered as by nvidia-smi.
    Megabytes are 10^6 bytes, gigabytes 10^9. ``cpu_percent`` is of all processors of the machine, ``process_cpu_percent``
    the part that this process and its children have in it; memory is the machine's, or that of the container. What
    changes over time is the mean since the row before; an empty cell says that nothing is known: there was no row before,
    no update has ended since, or the machine does not tell. A later session adds its rows with the next number.

    Args:
        path: of the table.
        cache_dir: what the run keeps for later ones, which may lie on another disk than the table.
        num_gpus: that TensorFlow found.
        tensorboard: a directory to write the numbers to as well, at steps that are seconds since the run began.
    """

    def __init__(
        self,
        path: Path,
        cache_dir: str | Path,
        num_gpus: int = 0,
        tensorboard: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path, self._num_gpus, self._tensorboard, self._clock = path, num_gpus, tensorboard, clock
        self._disks = {"run": path.parent, "cache": Path(cache_dir)}
        self._process = psutil.Process()
        self._open, self._over = ExitStack(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._gpus, self._file, self._events, self._session = [], None, None, 1
        self._stage, self._done, self._trained_at = "", (0, 0.0, None, ""), clock()
        self._total_memory = 0
        self._counters: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}
        self._said: set[str] = set()

    def __enter__(self) -> "Monitor":
        try:
            self._begin()
        except BaseException:  # a signal
            self._open.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        try:
            self._thread.join(JOIN_SECONDS)
        finally:
            with self._harmless("the end"):
                self._open.close()

    def _begin(self) -> None:
        self._started = self._clock()
        with self._harmless("the GPUs"):
            if self._num_gpus:
                self._gpus = self._open.enter_context(gpus.visible_gpus(self._num_gpus))
        self._columns = [*COLUMNS, *(f"gpu{gpu.index}_{figure}" for gpu in self._gpus for figure in gpus.FIGURES)]
        self._first = datetime.now(UTC)
        with self._harmless(str(self._path)):
            self._continue_file()
        with self._harmless("TensorBoard"):
            if self._tensorboard:
                from tensorboard.summary.writer.event_file_writer import EventFileWriter

                self._events = EventFileWriter(str(self._tensorboard), flush_secs=LONGEST)
                self._open.callback(self._events.close)
        self.sample()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names what the run does inside the block."""
        self._stage = name
        try:
            yield
        finally:
            self._stage = ""

    def trained(self, num_images: int, learning_rate: float | None = None) -> None:
        """Takes note of updates that have just ended; 0 images begin an epoch, from when the time of the next ones counts."""
        now = self._clock()
        if num_images:
            images, seconds, *_ = self._done
            # All at once, since the thread may read it at any moment.
            self._done = images + num_images, seconds + now - self._trained_at, learning_rate, self._stage
        self._trained_at = now

    def sample(self) -> dict[str, Any]:
        """Takes one sample, writes it and returns it by column; says what needs attention."""
        now = datetime.now(UTC)
        row = dict.fromkeys(self._columns)
        row |= {"time": now.isoformat(timespec="milliseconds"), "session": self._session, "stage": self._stage}
        self._sampled = self._clock()
        elapsed = self._grown("clock", self._sampled)
        row |= self._training()
        for what, source in (("processors", self._processors), ("memory", self._memory), ("disks", self._disk)):
            with self._harmless(f"the {what}"):
                row |= source(elapsed)
        for gpu in self._gpus:
            with self._harmless(f"GPU {gpu.index}"):
                row |= self._gpu(gpu)
        with self._harmless(str(self._path)):
            if self._file:
                self._file.write((",".join(map(_cell, row.values())) + "\n").encode())
        with self._harmless("TensorBoard"):
            if self._events:
                self._write_events(row, now)
        return row

    def _watch(self) -> None:
        cost = 0.0
        while not self._over.wait(pause(self._clock() - self._started, cost)):
            before = time.thread_time()
            self.sample()
            cost = time.thread_time() - before
        if self._clock() - self._sampled >= SHORTEST / 2:  # the processor's clock is too coarse for less
            self.sample()

    @contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        """What fails inside is said once, and goes no further."""
        try:
            yield
        except Exception as error:  # a driver, a file system, a kernel without /proc: nothing that a run depends on
            if what not in self._said:
                self._said.add(what)
                with suppress(Exception):
                    why = str(error) or type(error).__name__
                    logger.warning(
                        f"{what[:1].upper()}{what[1:]} cannot be watched ({why}); the run goes on without it."
                    )

    def _warn(self, kind: str, holds: bool, sentence: str, in_a_row: int = 1) -> None:
        self._in_a_row[kind] = self._in_a_row.get(kind, 0) + 1 if holds else 0
        if self._in_a_row[kind] >= in_a_row and kind not in self._said:
            self._said.add(kind)
            logger.warning(sentence)

    def _grown(self, name: str, value: float) -> float | None:
        """By how much a counter has grown since the sample before; None at the first one, and where it began anew."""
        before = self._counters.get(name)
        self._counters[name] = value
        return value - before if before is not None and value >= before else None

    def _training(self) -> dict[str, Any]:
        images, seconds, learning_rate, stage = self._done  # which may be over by now
        more, in_seconds = self._grown("images", images), self._grown("training", seconds)
        if not more or not in_seconds:
            return {}
        return {"images_per_second": more / in_seconds, "learning_rate": learning_rate, "stage": stage}

    def _processors(self, elapsed: float | None) -> dict[str, float | None]:
        times = psutil.cpu_times()
        all_time = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # in user and nice too
        total = self._grown("total", all_time)
        idle = self._grown("idle", times.idle + getattr(times, "iowait", 0.0))
        own = self._process.cpu_times()
        seconds = own.user + own.system + own.children_user + own.children_system
        for child in self._process.children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                seconds += sum(child.cpu_times()[:4])
        used = self._grown("used", seconds)
        return {
            "cpu_percent": None if not total or idle is None else 100 * max(0.0, 1 - idle / total),
            "process_cpu_percent": None
            if not elapsed or used is None
            else 100 * used / elapsed / (psutil.cpu_count() or 1),
        }

    def _memory(self, elapsed: float | None) -> dict[str, float]:
        self._total_memory = total = self._total_memory or resources.total_bytes()  # which takes time to find out
        available = resources.available_bytes()
        self._warn(
            "memory",
            available < LOW_MEMORY * total,
            f"{size(available)} of {size(total)} of memory are left; without any the system kills the run, which --resume "
            "then continues. End other programs, or start a new run with more --gradient-accumulation-steps.",
        )
        return {
            "memory_total_mb": total / 1e6,
            "memory_available_mb": available / 1e6,
            "process_memory_mb": self._process.memory_info().rss / 1e6,
        }

    def _disk(self, elapsed: float | None) -> dict[str, float | None]:
        row = {}
        if (counters := psutil.disk_io_counters()) is not None:
            for name, value in (("read", counters.read_bytes), ("write", counters.write_bytes)):
                more = self._grown(name, value)
                row[f"disk_{name}_mb_per_second"] = None if not elapsed or more is None else more / elapsed / 1e6
        for name, path in self._disks.items():
            place = existing_part(path)
            free = psutil.disk_usage(str(place)).free
            self._warn(
                f"disk {os.stat(place).st_dev}",
                free < LOW_DISK,
                f"{size(free)} are left on the disk of {path}; make room before a checkpoint cannot be written.",
            )
            row[f"{name}_disk_free_gb"] = free / 1e9
        return row

    def _gpu(self, gpu: gpus.Gpu) -> dict[str, Any]:
        now = gpu.sample()
        title = f"GPU {gpu.index} ({gpu.name})"
        of_limit = f"of {gpu.power_limit_watts:,.0f} W" if gpu.power_limit_watts else "W"
        units = ("celsius", "°C"), ("watts", of_limit), ("sm_mhz", "MHz")
        state = [f"{now[figure]:,.0f} {unit}" for figure, unit in units if now[figure] is not None]
        state = f" (now {', '.join(state)})" if state else ""
        reasons = now["throttled_by"] or ""
        for reason, sentence in (
            ("heat", f"{title} lowers its clock because it is hot{state}; cool it better, or lower its power limit."),
            (
                "power",
                f"{title} lowers its clock to keep to its power{state}, as many do under full load; a higher limit, "
                "where its power supply bears it, makes it faster.",
            ),
            ("hardware", f"{title} lowers its clock because of heat or its power supply{state}; look after both."),
        ):
            self._warn(f"{title} {reason}", reason in reasons, sentence, SUSTAINED)
        if gpu.slowdown_celsius is not None and now["celsius"] is not None:
            self._warn(
                f"{title} temperature",
                now["celsius"] >= gpu.slowdown_celsius - NEAR_SLOWDOWN,
                f"{title} is at {now['celsius']} °C and lowers its clock at {gpu.slowdown_celsius} °C; cool it better.",
            )
        used, total = now["memory_used_mb"], now["memory_total_mb"]
        if total:
            self._warn(
                f"{title} memory",
                used > FULL_GPU * total,
                f"{title} has {size(1e6 * used)} of its {size(1e6 * total)} of memory in use; if it is not enough, "
                "the run goes on with smaller parts of a batch, and slower.",
            )
        return {f"gpu{gpu.index}_{figure}": value for figure, value in now.items()}

    def _continue_file(self) -> None:
        """Opens the table behind what earlier sessions wrote, perhaps on another machine with other GPUs."""
        header, rows = _whole_rows(self._path)
        if rows:
            known = [dict(zip(header, row, strict=True)) for row in rows]
            self._session = 1 + max(int(row["session"]) for row in known)
            self._first = datetime.fromisoformat(known[0]["time"])
            self._columns = list(dict.fromkeys([*header, *self._columns]))
            rows = [[row.get(name, "") for name in self._columns] for row in known]
        lines = "".join(",".join(cells) + "\n" for cells in (self._columns, *rows))
        with written_atomically(self._path) as temporary:
            temporary.write_text(lines, encoding="utf-8")
        self._file = self._open.enter_context(open(self._path, "ab", buffering=0))  # each row at once, in one piece

    def _write_events(self, row: dict[str, Any], now: datetime) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{'hardware' if name not in COLUMNS[3:5] else 'training'}/{name}", simple_value=value)
            for name, value in row.items()
            if value is not None and not name.endswith(TEXTS) and name != "session"
        ]
        step = int((now - self._first).total_seconds())
        self._events.add_event(Event(wall_time=now.timestamp(), step=step, summary=Summary(value=values)))


def read_hardware(path: Path) -> pd.DataFrame:
    """Reads what a Monitor wrote, without the rows that a kill or a full disk tore; no rows where there is no such file.

    Returns:
        The columns of the file and COLUMNS: `time` as UTC timestamps, texts as they are, all others as float64.
    """
    header, rows = _whole_rows(path)
    table = pd.DataFrame(rows, columns=header, dtype=str).reindex(columns=list(dict.fromkeys([*COLUMNS, *header])))
    for name in table.columns:
        if not name.endswith(TEXTS):
            table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
    table["time"] = pd.to_datetime(table["time"], format="ISO8601", errors="coerce", utc=True)
    return table.dropna(subset=["time", "session"], ignore_index=True)


def gpu_numbers(table: pd.DataFrame) -> list[int]:
    """The numbers of the GPUs that a table of `read_hardware` has columns of."""
    found = (re.fullmatch(r"gpu(\d+)_percent", name) for name in table.columns)
    return sorted(int(match[1]) for match in found if match)


def describe(table: pd.DataFrame) -> list[str]:
    """What a table of `read_hardware` with one row or more comes to: sentences, the first of the machine, one a GPU.

    Means are over time: each row counts by the time since the one before.
    """
    seconds = table.groupby("session")["time"].diff().dt.total_seconds().fillna(0.0)

    def mean(values: pd.Series) -> float:
        known = values.notna() & (seconds > 0)
        return float(np.average(values[known], weights=seconds[known])) if known.any() else np.nan

    def known(text: str, *values: float, as_size: bool = False) -> str:
        if not np.isfinite(values).all():
            return ""
        return text.format(*(size(1e6 * value) for value in values) if as_size else values)

    def sentence(title: str, *parts: str) -> str:
        return f"{title}: {', '.join(filter(None, parts)) or 'nothing is known'}."

    num_sessions = table["session"].nunique()
    sessions = f", {num_sessions} sessions" if num_sessions > 1 else ""
    own = known(" ({:.0f} % by this run)", mean(table["process_cpu_percent"]))
    memory_left = table["memory_available_mb"].min(), table["memory_total_mb"].max()
    sentences = [
        sentence(
            f"{len(table):,} sample{'s' * (len(table) > 1)} in {duration(seconds.sum())}{sessions}",
            known("processors {:.0f} % busy on average" + own, mean(table["cpu_percent"])),
            known("no less than {} of {} of memory left", *memory_left, as_size=True),
            known("up to {} held by the run itself", table["process_memory_mb"].max(), as_size=True),
        )
    ]
    for number in gpu_numbers(table):
        gpu = {figure: table[f"gpu{number}_{figure}"] for figure in gpus.FIGURES}
        lowered = ~gpu["throttled_by"].isin(["", "none"])
        memory_used = gpu["memory_used_mb"].max(), gpu["memory_total_mb"].max()
        sentences.append(
            sentence(
                f"GPU {number}",
                known("{:.0f} % in use on average", mean(gpu["percent"])),
                known("up to {} of {} of memory", *memory_used, as_size=True),
                known("up to {:.0f} °C", gpu["celsius"].max()),
                known("up to {:.0f} W", gpu["watts"].max()),
                lowered.any() and f"clock lowered for {100 * mean(lowered.astype(float)):.0f} % of the time",
            )
        )
    return sentences


def _whole_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows that are complete; a row that is not ends in the middle, or has another one behind it."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line[:-1].split(",") for line in text.splitlines(keepends=True) if line.endswith("\n")]
    header = lines[0] if lines and lines[0][:2] == list(COLUMNS[:2]) else []
    return header, [cells for cells in lines[1:] if len(cells) == len(header)]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
