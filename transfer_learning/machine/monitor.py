"""Resource usage of a run, sampled by a thread: processors, memory, disks, GPUs and images per second.

It only records and warns: no result depends on it, and no failure here ends a run.
"""

import io
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
SAMPLES_PER_TENFOLD = 100  # the interval grows with the run, so that the file of a day stays small
LARGEST_SHARE = 0.002  # of one core's time, for sampling
JOIN_SECONDS = 10  # a driver that hangs must not keep a finished run from ending

COLUMNS = tuple(
    "time session stage images_per_second learning_rate cpu_percent process_cpu_percent memory_total_mb "
    "memory_available_mb process_memory_mb disk_read_mb_per_second disk_write_mb_per_second run_disk_free_gb "
    "cache_disk_free_gb".split()
)
TEXTS = ("time", "stage", "throttled_by")

LOW_MEMORY = 0.05  # warn below this fraction of memory available
FULL_GPU = 0.95  # and above this fraction of GPU memory in use
LOW_DISK = 1e9  # bytes free
NEAR_SLOWDOWN = 3  # °C below the throttling temperature
SUSTAINED = 3  # consecutive throttled samples


def pause(elapsed: float, cost: float) -> float:
    """Seconds until the next sample: `elapsed` since the first one, `cost` in processor seconds of the last one."""
    return max(min(max(elapsed / SAMPLES_PER_TENFOLD, SHORTEST), LONGEST), cost / LARGEST_SHARE)


class Monitor:
    """A context manager that appends samples to a CSV file, and logs a warning when a resource runs short.

    A row has the columns COLUMNS, and per GPU each of `gpus.FIGURES` with the prefix ``gpu0_``, numbered as by
    nvidia-smi. Megabytes are 10^6 bytes, gigabytes 10^9. ``cpu_percent`` is of all cores of the machine,
    ``process_cpu_percent`` the part of this process and its children; memory is the machine's or the container's. Rates
    are means since the previous row; a cell is empty if its value is unknown. A later session appends its rows with the
    next session number.

    Args:
        path: of the CSV file.
        cache_dir: the cache, which may be on another disk.
        num_gpus: that TensorFlow found.
        tensorboard: a directory for TensorBoard events as well; their steps are seconds since the run began.
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
        self._gpus: list[gpus.Gpu] = []
        self._file: io.RawIOBase | None = None
        self._events: Any = None  # TensorBoard's writer
        self._session, self._stage, self._trained_at, self._total_memory = 1, "", clock(), 0
        self._done: tuple[int, float, float | None, str] = (0, 0.0, None, "")
        self._counters: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}
        self._warned: set[str] = set()

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
        """Names the stage of the run inside the block."""
        self._stage = name
        try:
            yield
        finally:
            self._stage = ""

    def trained(self, num_images: int, learning_rate: float | None = None) -> None:
        """Counts the images of train steps that have just ended; 0 images mark the start of an epoch."""
        now = self._clock()
        if num_images:
            images, seconds, *_ = self._done
            # One assignment, because the thread may read it at any moment.
            self._done = images + num_images, seconds + now - self._trained_at, learning_rate, self._stage
        self._trained_at = now

    def sample(self) -> dict[str, Any]:
        """Takes one sample, writes it and returns it by column."""
        now = datetime.now(UTC)
        row: dict[str, Any] = dict.fromkeys(self._columns)
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
        if self._clock() - self._sampled >= SHORTEST / 2:  # the clock of processor times is too coarse for less
            self.sample()

    @contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        """Logs the first exception inside, and suppresses all."""
        try:
            yield
        except Exception as error:  # of a driver, a file system, a kernel without /proc
            if what not in self._warned:
                self._warned.add(what)
                with suppress(Exception):
                    why = str(error) or type(error).__name__
                    logger.warning(f"{what[:1].upper()}{what[1:]} cannot be monitored ({why}).")

    def _warn(self, kind: str, holds: bool, sentence: str, in_a_row: int = 1) -> None:
        """Logs `sentence` once, when `holds` was true `in_a_row` times."""
        self._in_a_row[kind] = self._in_a_row.get(kind, 0) + 1 if holds else 0
        if self._in_a_row[kind] >= in_a_row and kind not in self._warned:
            self._warned.add(kind)
            logger.warning(sentence)

    def _grown(self, name: str, value: float) -> float | None:
        """Growth of a counter since the previous sample; None at the first one and after a reset."""
        before = self._counters.get(name)
        self._counters[name] = value
        return value - before if before is not None and value >= before else None

    def _training(self) -> dict[str, Any]:
        images, seconds, learning_rate, stage = self._done  # the stage may be over by now
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
        own_share = None if not elapsed or used is None else used / elapsed / (psutil.cpu_count() or 1)
        return {
            "cpu_percent": None if not total or idle is None else 100 * max(0.0, 1 - idle / total),
            "process_cpu_percent": None if own_share is None else 100 * own_share,
        }

    def _memory(self, elapsed: float | None) -> dict[str, float]:
        self._total_memory = total = self._total_memory or resources.total_bytes()  # which takes time to read
        available = resources.available_bytes()
        left = f"{size(available)} of {size(total)} available"
        advice = "End other programs, or start a new run with more --gradient-accumulation-steps."
        self._warn("memory", available < LOW_MEMORY * total, f"Memory is low: {left}. {advice}")
        return {
            "memory_total_mb": total / 1e6,
            "memory_available_mb": available / 1e6,
            "process_memory_mb": self._process.memory_info().rss / 1e6,
        }

    def _disk(self, elapsed: float | None) -> dict[str, float | None]:
        row: dict[str, float | None] = {}
        if (counters := psutil.disk_io_counters()) is not None:
            for name, value in (("read", counters.read_bytes), ("write", counters.write_bytes)):
                more = self._grown(name, value)
                row[f"disk_{name}_mb_per_second"] = None if not elapsed or more is None else more / elapsed / 1e6
        for name, path in self._disks.items():
            place = existing_part(path)
            free = psutil.disk_usage(str(place)).free
            problem = f"The disk of {path} is almost full: {size(free)} free. Make room for the next checkpoint."
            self._warn(f"disk {os.stat(place).st_dev}", free < LOW_DISK, problem)
            row[f"{name}_disk_free_gb"] = free / 1e9
        return row

    def _gpu(self, gpu: gpus.Gpu) -> dict[str, Any]:
        now = gpu.sample()
        title = f"GPU {gpu.index} ({gpu.name})"
        of_limit = f"of {gpu.power_limit_watts:,.0f} W" if gpu.power_limit_watts else "W"
        units = ("celsius", "°C"), ("watts", of_limit), ("sm_mhz", "MHz")
        state = ", ".join(f"{now[figure]:,.0f} {unit}" for figure, unit in units if now[figure] is not None)
        at = f" at {state}" if state else ""
        for reason, cause in (
            ("heat", "by heat; cool it better, or lower its power limit"),
            ("power", "by its power limit"),
            ("hardware", "by heat or its power supply; check both"),
        ):
            is_throttled = reason in (now["throttled_by"] or "")
            self._warn(f"{title} {reason}", is_throttled, f"{title} is throttled{at} {cause}.", SUSTAINED)
        heat, limit = now["celsius"], gpu.slowdown_celsius
        used, total = now["memory_used_mb"], now["memory_total_mb"]
        if limit is not None and heat is not None:
            problem = f"{title} is at {heat} °C and throttles at {limit} °C; cool it better."
            self._warn(f"{title} temperature", heat >= limit - NEAR_SLOWDOWN, problem)
        if total:
            problem = f"{title} uses {size(1e6 * used)} of {size(1e6 * total)} memory."
            self._warn(f"{title} memory", used > FULL_GPU * total, problem)
        return {f"gpu{gpu.index}_{figure}": value for figure, value in now.items()}

    def _continue_file(self) -> None:
        """Opens the file to append to the rows of earlier sessions, perhaps of a machine with other GPUs."""
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
        self._file = self._open.enter_context(open(self._path, "ab", buffering=0))  # one write per row

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
    """Reads the file of a Monitor without incomplete rows; an empty table if the file is missing. Columns: those of the
    file and COLUMNS; `time` as UTC timestamps, texts as str, all others as float64.
    """
    header, rows = _whole_rows(path)
    table = pd.DataFrame(rows, columns=header, dtype=str).reindex(columns=list(dict.fromkeys([*COLUMNS, *header])))
    for name in table.columns:
        if not name.endswith(TEXTS):
            table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
    table["time"] = pd.to_datetime(table["time"], format="ISO8601", errors="coerce", utc=True)
    return table.dropna(subset=["time", "session"], ignore_index=True)


def gpu_numbers(table: pd.DataFrame) -> list[int]:
    """The numbers of the GPUs in a table of `read_hardware`."""
    found = (re.fullmatch(r"gpu(\d+)_percent", name) for name in table.columns)
    return sorted(int(match[1]) for match in found if match)


def describe(table: pd.DataFrame) -> list[str]:
    """Summarises a non-empty table of `read_hardware`: one sentence for the machine, and one per GPU.

    Means are over time: each row is weighted by the seconds since the previous one.
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
        return f"{title}: {', '.join(filter(None, parts)) or 'unknown'}."

    sessions = f", {count} sessions" if (count := table["session"].nunique()) > 1 else ""
    own = known(" ({:.0f} % by this run)", mean(table["process_cpu_percent"]))
    memory_left = table["memory_available_mb"].min(), table["memory_total_mb"].max()
    sentences = [
        sentence(
            f"{len(table):,} sample{'s' if len(table) > 1 else ''} in {duration(seconds.sum())}{sessions}",
            known("processors {:.0f} % busy on average" + own, mean(table["cpu_percent"])),
            known("at least {} of {} of memory available", *memory_left, as_size=True),
            known("up to {} used by the run", table["process_memory_mb"].max(), as_size=True),
        )
    ]
    for number in gpu_numbers(table):
        gpu = {figure: table[f"gpu{number}_{figure}"] for figure in gpus.FIGURES}
        throttled = ~gpu["throttled_by"].isin(["", "none"])
        memory_used = gpu["memory_used_mb"].max(), gpu["memory_total_mb"].max()
        sentences.append(
            sentence(
                f"GPU {number}",
                known("{:.0f} % in use on average", mean(gpu["percent"])),
                known("up to {} of {} of memory", *memory_used, as_size=True),
                known("up to {:.0f} °C", gpu["celsius"].max()),
                known("up to {:.0f} W", gpu["watts"].max()),
                f"throttled for {100 * mean(throttled.astype(float)):.0f} % of the time" if throttled.any() else "",
            )
        )
    return sentences


def _whole_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the complete rows; a row that a kill or a full disk cut off has another number of cells."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line[:-1].split(",") for line in text.splitlines(keepends=True) if line.endswith("\n")]
    header = lines[0] if lines and lines[0][:2] == list(COLUMNS[:2]) else []
    return header, [cells for cells in lines[1:] if len(cells) == len(header)]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
