"""The monitor writes what the machine does, warns once, harms nothing, and ends with the run; GPUs here are made up."""

import os
import threading
import time
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import psutil
import pynvml
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.machine.test_gpus import GPU, NOT_SUPPORTED, make_machine
from tests.support.logs import log_messages
from transfer_learning.errors import Stopped
from transfer_learning.machine import gpus, monitor, resources
from transfer_learning.machine.monitor import COLUMNS, Monitor, describe, read_hardware

GB = 10**9
LOST = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
DEADLINE = 60  # seconds, for what takes a fraction of one

Times = namedtuple("Times", "user nice system idle iowait guest guest_nice")
OwnTimes = namedtuple("OwnTimes", "user system children_user children_system iowait")


class Machine(SimpleNamespace):
    """Four processors, 16 GB and a disk; what `psutil` says is what the attributes say."""

    def cpu_times(self):
        return Times(self.busy, 0.0, 0.0, self.idle, 0.0, self.busy / 2, 0.0)  # half of it in a virtual machine

    def process(self, seconds, children):
        return SimpleNamespace(
            cpu_times=lambda: OwnTimes(seconds(), 0.0, 0.0, 0.0, 0.0),
            children=lambda recursive: children,
            memory_info=lambda: SimpleNamespace(rss=self.rss),
        )


@pytest.fixture
def machine(monkeypatch):
    made = Machine(
        now=1000.0,
        busy=0.0,
        idle=0.0,
        own=0.0,
        child=0.0,
        read=0,
        written=0,
        free=100 * GB,
        total=16 * GB,
        available=10 * GB,
        rss=2 * GB,
    )
    child = made.process(lambda: made.child, [])
    own = made.process(lambda: made.own, [child])
    monkeypatch.setattr(psutil, "Process", lambda: own)
    monkeypatch.setattr(psutil, "cpu_times", made.cpu_times)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    counters = lambda: SimpleNamespace(read_bytes=made.read, write_bytes=made.written)  # noqa: E731
    monkeypatch.setattr(psutil, "disk_io_counters", counters)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=made.free))
    monkeypatch.setattr(resources, "total_bytes", lambda: made.total)
    monkeypatch.setattr(resources, "available_bytes", lambda: made.available)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.fixture
def watched(machine, tmp_path, monkeypatch):
    """Makes a Monitor whose thread takes no samples, so that the test alone does; `said` collects its sentences."""
    monkeypatch.setattr(Monitor, "_watch", lambda self: None)

    def make(**arguments):
        arguments = {"num_gpus": 0, "clock": lambda: machine.now} | arguments
        return Monitor(tmp_path / "hardware.csv", tmp_path / "cache" / "deep", **arguments)

    make.said = log_messages()
    return make


def test_a_row_holds_what_is_and_the_mean_of_what_changed_since_the_row_before(watched, machine, tmp_path):
    with watched() as running:
        machine.now += 10
        machine.busy += 30  # of 40 processor seconds
        machine.idle += 10
        machine.own, machine.child = 8.0, 2.0
        machine.read, machine.written = 50_000_000, 20_000_000
        with running.stage("decode"):
            row = running.sample()
        machine.now += 5
        machine.idle += 20
        after = running.sample()
    assert row | {"time": ""} == {
        "time": "",
        "session": 1,
        "stage": "decode",
        "images_per_second": None,
        "learning_rate": None,
        "cpu_percent": 75.0,
        "process_cpu_percent": 25.0,
        "memory_total_mb": 16000.0,
        "memory_available_mb": 10000.0,
        "process_memory_mb": 2000.0,
        "disk_read_mb_per_second": 5.0,
        "disk_write_mb_per_second": 2.0,
        "run_disk_free_gb": 100.0,
        "cache_disk_free_gb": 100.0,
    }
    assert (after["stage"], after["cpu_percent"], after["process_cpu_percent"]) == ("", 0.0, 0.0)
    table = read_hardware(tmp_path / "hardware.csv")
    assert len(table) == 3 and tuple(table.columns) == COLUMNS
    first, second, third = table.to_dict("records")
    assert (
        first["memory_total_mb"] == 16000
        and np.isnan(first["cpu_percent"])
        and np.isnan(first["disk_read_mb_per_second"])
    )
    assert second["cpu_percent"] == 75 and second["stage"] == "decode" and np.isnan(second["images_per_second"])
    assert watched.said == []


def test_images_per_second_are_those_of_the_updates_alone(watched, machine):
    with watched() as running:
        running.trained(0)  # an epoch begins
        machine.now += 2
        running.trained(64, 0.01)
        machine.now += 2
        running.trained(32, 0.02)
        machine.now += 1
        row = running.sample()
        assert (row["images_per_second"], row["learning_rate"]) == (96 / 4, 0.02)
        machine.now += 1
        row = running.sample()  # an update takes longer than from one sample to the next
        assert (row["images_per_second"], row["learning_rate"]) == (None, None)
        machine.now += 2
        running.trained(40, 0.03)
        assert running.sample()["images_per_second"] == 10  # in the 4 seconds of the update
        with running.stage("frozen"):
            machine.now += 2
            running.trained(80, 0.03)
        with running.stage("fine_tune"):
            row = running.sample()
            assert (row["images_per_second"], row["stage"]) == (40, "frozen")
            assert running.sample()["stage"] == "fine_tune"
        machine.now += 100  # validation
        running.trained(0)
        machine.now += 1
        running.trained(50, 0.04)
        assert running.sample()["images_per_second"] == 50


@pytest.mark.parametrize(
    ("elapsed", "cost", "expected"),
    [(0, 0, 1), (99, 0, 1), (500, 0.001, 5), (1e6, 0, 10), (0, 0.004, 2), (1e6, 0.01, 10), (1e6, 0.1, 50)],
)
def test_samples_are_seldom_enough_to_cost_little(elapsed, cost, expected):
    assert monitor.pause(elapsed, cost) == pytest.approx(expected)
    assert cost <= 0.005 * monitor.pause(elapsed, cost)


def gpu_column(name):
    return f"gpu0_{name}"


def test_gpus_have_columns_of_their_own(watched, monkeypatch, tmp_path):
    make_machine(monkeypatch, GPU, GPU | {"uuid": "GPU-bb22", "milliwatts": NOT_SUPPORTED, "reasons": 0x40})
    with watched(num_gpus=2):
        pass
    (row,) = read_hardware(tmp_path / "hardware.csv").to_dict("records")
    assert [row[f"gpu0_{name}"] for name in gpus.FIGURES] == [83, 3000, 4000, 71, 30.5, 1740, 7001, "none"]
    assert np.isnan(row["gpu1_watts"]) and row["gpu1_throttled_by"] == "heat"
    assert monitor.gpu_numbers(read_hardware(tmp_path / "hardware.csv")) == [0, 1]
    assert watched.said == []


@pytest.mark.parametrize(
    ("changes", "gpu", "num_samples", "words"),
    [
        ({"available": 0.05 * 16 * GB}, {}, 5, []),
        ({"available": 0.04 * 16 * GB}, {}, 5, ["640 MB of 16.0 GB available", "--gradient-accumulation-steps"]),
        ({"free": 1.1 * GB}, {}, 5, []),
        ({"free": 0.9 * GB}, {}, 5, ["almost full: 900 MB free"]),
        ({}, {"reasons": 0x40}, 2, []),  # not yet sustained
        ({}, {"reasons": 0x40}, 3, ["GPU 0 (RTX 2050) is throttled at 71 °C, 30 of 45 W, 1,740 MHz by heat"]),
        ({}, {"reasons": 0x4}, 9, ["by its power limit"]),
        ({}, {"reasons": 0x8, "limit": NOT_SUPPORTED}, 3, ["at 71 °C, 30 W, 1,740 MHz by heat or its power supply"]),
        ({}, {"reasons": 0x1}, 9, []),
        ({}, {"celsius": 93}, 3, []),
        ({}, {"celsius": 94}, 1, ["is at 94 °C and throttles at 97 °C"]),
        ({}, {"celsius": 94, "slowdown": NOT_SUPPORTED}, 3, []),
        ({}, {"memory": (3.8e9, 4e9)}, 3, []),
        ({}, {"memory": (3.9e9, 4e9)}, 3, ["uses 3.9 GB of 4.0 GB memory"]),
        ({}, {"memory": NOT_SUPPORTED, "milliwatts": NOT_SUPPORTED, "reasons": NOT_SUPPORTED}, 3, []),
    ],
)
def test_what_needs_attention_is_said_once(changes, gpu, num_samples, words, watched, machine, monkeypatch):
    make_machine(monkeypatch, GPU | gpu)
    vars(machine).update(changes)
    with watched(num_gpus=1) as running:  # the first sample
        for _ in range(num_samples - 1):
            running.sample()
    assert len(watched.said) == bool(words)
    for sentence in watched.said:
        assert all(word in sentence for word in words), sentence


def test_a_short_throttling_now_and_then_is_no_matter(watched, monkeypatch):
    gpu = GPU | {"reasons": 0}
    make_machine(monkeypatch, gpu)
    with watched(num_gpus=1) as running:
        for reasons in (4, 4, 0, 4, 4, 0, 4, 4):
            gpu["reasons"] = reasons
            running.sample()
        assert watched.said == []
        gpu["reasons"] = 4 | 0x20
        running.sample()
    assert len(watched.said) == 1 and "power" in watched.said[0]  # the third time in a row; heat only the first


def failing(*arguments, **named):
    raise OSError("no such thing here")


@pytest.mark.parametrize(
    ("broken", "words", "empty"),
    [
        ("cpu_times", "The processors", {"cpu_percent", "process_cpu_percent"}),
        (
            "disk_io_counters",
            "The disks",
            {"disk_read_mb_per_second", "disk_write_mb_per_second", "run_disk_free_gb", "cache_disk_free_gb"},
        ),
        ("total_bytes", "The memory", {"memory_total_mb", "memory_available_mb", "process_memory_mb"}),
    ],
)
def test_what_cannot_be_sampled_is_said_once_and_the_rest_goes_on(broken, words, empty, watched, machine, monkeypatch):
    monkeypatch.setattr(resources if broken == "total_bytes" else psutil, broken, failing)
    with watched() as running:
        for _ in range(3):
            machine.now += 1
            machine.busy += 1
            row = running.sample()
    assert watched.said == [f"{words} cannot be monitored (no such thing here)."]
    known = {name for name, value in row.items() if value is not None}
    assert set(COLUMNS) - known == empty | {"images_per_second", "learning_rate"}


def test_a_container_without_disk_counters_has_the_rest(watched, machine, monkeypatch):
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    with watched() as running:
        machine.now += 1
        row = running.sample()
    assert row["disk_read_mb_per_second"] is None and row["run_disk_free_gb"] == 100 and watched.said == []


def test_no_gpu_is_a_normal_case_and_nobody_is_asked(watched, monkeypatch, tmp_path):
    make_machine(monkeypatch, error=AssertionError("NVML was asked"))
    with watched():
        pass
    assert watched.said == [] and monitor.gpu_numbers(read_hardware(tmp_path / "hardware.csv")) == []


def test_a_gpu_without_a_driver_to_ask_is_logged(watched, monkeypatch, tmp_path):
    make_machine(monkeypatch, error=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    with watched(num_gpus=1) as running:
        running.sample()
    (sentence,) = watched.said
    assert "The GPUs cannot be monitored (NVML Shared Library Not Found)" in sentence
    assert len(read_hardware(tmp_path / "hardware.csv")) == 2


def test_a_gpu_that_falls_off_its_bus_leaves_its_cells_empty(watched, monkeypatch):
    gpu = dict(GPU)
    make_machine(monkeypatch, gpu, GPU | {"uuid": "GPU-bb22"})
    with watched(num_gpus=2) as running:
        gpu["celsius"] = LOST
        rows = [running.sample(), running.sample()]
    assert watched.said == ["GPU 0 cannot be monitored (GPU is lost)."]
    assert all(row["gpu0_percent"] is None and row["gpu1_percent"] == 83 for row in rows)


def test_a_warning_that_cannot_be_logged_ends_no_run(watched, machine, tmp_path, monkeypatch):
    machine.available = 0
    monkeypatch.setattr(monitor.logger, "warning", failing)
    with watched() as running:
        running.sample()
    assert len(read_hardware(tmp_path / "hardware.csv")) == 2


def test_a_full_disk_is_said_once_and_the_table_goes_on_when_there_is_room(watched, tmp_path):
    class Full:
        def write(self, line):
            rest.write(line[:20])  # what the disk still takes
            raise OSError(28, "No space left on device")

    with watched() as running:
        rest, running._file = running._file, Full()
        for _ in range(2):
            running.sample()
        running._file = rest
        running.sample()  # shares its line with what was torn, and is lost with it
        running.sample()
    assert len(watched.said) == 1 and "No space left" in watched.said[0]
    assert len(read_hardware(tmp_path / "hardware.csv")) == 2


def test_a_directory_that_cannot_be_written_ends_no_run(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "_watch", lambda self: None)
    said = log_messages()
    (tmp_path / "file").touch()
    with Monitor(tmp_path / "file" / "hardware.csv", tmp_path) as running:
        assert running.sample()["memory_total_mb"] == 16000
    assert len(said) == 1 and "cannot be monitored" in said[0]


def test_a_stop_is_no_failure(watched, monkeypatch):
    """A signal comes as an exception, wherever the main thread is."""

    def stopped():
        raise Stopped(15)

    with watched() as running:
        monkeypatch.setattr(psutil, "cpu_times", stopped)
        with pytest.raises(Stopped):
            running.sample()
    with pytest.raises(Stopped), watched():
        pytest.fail("it has not begun")
    assert watched.said == []


def test_each_session_adds_its_rows_with_the_next_number(watched, monkeypatch, tmp_path):
    path = tmp_path / "hardware.csv"
    with watched() as running:
        running.sample()
    make_machine(monkeypatch, GPU)
    with watched(num_gpus=1):  # on another machine
        pass
    with watched():
        pass
    table = read_hardware(path)
    assert table["session"].tolist() == [1, 1, 2, 3]
    assert table["time"].is_monotonic_increasing
    assert table["gpu0_percent"].fillna(-1).tolist() == [-1, -1, 83, -1]
    assert len({line.count(",") for line in path.read_text().splitlines()}) == 1


def test_a_row_torn_by_a_kill_is_left_out_whatever_is_left_of_it(watched, tmp_path):
    path = tmp_path / "hardware.csv"
    with watched() as running:
        running.sample()
    content = path.read_bytes()
    header, first, second = content.splitlines(keepends=True)
    for length in (*range(0, len(content), 9), len(header), len(header + first) - 1, len(header + first), len(content)):
        path.write_bytes(content[:length])
        num_whole = (length >= len(header + first)) + (length == len(content))
        assert len(read_hardware(path)) == num_whole
    for length in (0, 5, len(header), len(header) + 9, len(header + first) + 30):
        path.write_bytes(content[:length])
        with watched():
            pass
        table = read_hardware(path)
        num_whole = length > len(header + first)
        assert table["session"].tolist() == [1.0] * num_whole + [1.0 + num_whole]
        assert table["time"].notna().all()


def test_no_table_has_no_rows(tmp_path):
    for content in (None, b"", b"\xff\x00\n\n", b"a,b\n1,2\n"):
        if content is not None:
            (tmp_path / "hardware.csv").write_bytes(content)
        table = read_hardware(tmp_path / "hardware.csv")
        assert len(table) == 0 and set(COLUMNS) <= set(table.columns)


def test_the_thread_samples_until_the_end_and_does_not_outlive_it(tmp_path, monkeypatch):
    """On this machine as it is."""
    path, pauses = tmp_path / "hardware.csv", []

    def pause(elapsed, cost):
        pauses.append(cost)
        return 0.001

    monkeypatch.setattr(monitor, "pause", pause)
    before, deadline = threading.active_count(), time.monotonic() + DEADLINE
    with pytest.raises(ZeroDivisionError), Monitor(path, tmp_path, tensorboard=tmp_path / "events"):
        while len(read_hardware(path)) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        1 / 0  # noqa: B018
    assert threading.active_count() == before
    table = read_hardware(path)
    assert len(table) >= 5 and max(pauses) > 0
    assert (table["memory_available_mb"] > 0).all() and (table["process_memory_mb"] > 0).all()


def test_what_is_left_of_a_hanging_driver_keeps_no_run_from_ending(tmp_path, monkeypatch):
    hangs, begun = threading.Event(), threading.Event()

    def watch(self):
        begun.set()
        hangs.wait()

    monkeypatch.setattr(Monitor, "_watch", watch)
    monkeypatch.setattr(monitor, "JOIN_SECONDS", 0.01)
    with Monitor(tmp_path / "hardware.csv", tmp_path) as running:
        assert begun.wait(DEADLINE)
    assert running._thread.is_alive() and running._thread.daemon
    hangs.set()
    running._thread.join(DEADLINE)


def test_tensorboard_shows_the_same_numbers(watched, machine, monkeypatch, tmp_path):
    make_machine(monkeypatch, GPU | {"milliwatts": NOT_SUPPORTED})
    with watched(num_gpus=1, tensorboard=tmp_path / "events") as running:
        running.trained(0)
        machine.now += 4
        running.trained(64, 0.25)
        running.sample()
    events = EventAccumulator(os.fspath(tmp_path / "events")).Reload()
    table = read_hardware(tmp_path / "hardware.csv")
    shown = {}
    for tag in events.Tags()["scalars"]:
        kind, name = tag.split("/")
        assert kind == ("training" if name in ("images_per_second", "learning_rate") else "hardware")
        shown[name] = [event.value for event in events.Scalars(tag)]
        assert [event.wall_time for event in events.Scalars(tag)] == pytest.approx(
            [time.timestamp() for time, value in zip(table["time"], table[name], strict=True) if value == value],
            abs=0.002,
        )
    texts = {"time", "stage", "session", "gpu0_throttled_by"}
    expected = {name: table[name].dropna().tolist() for name in set(table.columns) - texts}
    assert shown.keys() == {name for name, values in expected.items() if values}
    for name, values in shown.items():
        assert values == pytest.approx(expected[name], rel=1e-5), name
    assert shown["images_per_second"] == [16] and shown["learning_rate"] == [0.25] and len(shown["gpu0_celsius"]) == 2


def test_a_run_is_described(watched, machine, monkeypatch, tmp_path):
    gpu = GPU | {"reasons": 0}
    make_machine(monkeypatch, gpu)
    path = tmp_path / "hardware.csv"
    with watched(num_gpus=1):
        pass
    header, row = path.read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))

    def line(**changes):
        return ",".join(str(changes.get(name, value)) for name, value in cells.items())

    rows = [
        line(time="2026-01-31T12:00:00+00:00"),
        line(
            time="2026-01-31T12:00:30+00:00",
            cpu_percent=100,
            process_cpu_percent=80,
            gpu0_percent=100,
            gpu0_throttled_by="power",
            memory_available_mb=4000,
        ),
        line(time="2026-01-31T12:02:00+00:00", cpu_percent=20, process_cpu_percent=0, gpu0_percent=20, gpu0_celsius=80),
        line(time="2026-02-01T12:00:00+00:00", session=2),
    ]
    path.write_text("\n".join([header, *rows, ""]))
    assert describe(read_hardware(path)) == [
        "4 samples in 2:00 min, 2 sessions: processors 40 % busy on average (20 % by this run), at least 4.0 GB of "
        "16.0 GB of memory available, up to 2.0 GB used by the run.",
        "GPU 0: 40 % in use on average, up to 3.0 GB of 4.0 GB of memory, up to 80 °C, up to 30 W, throttled for 25 % "
        "of the time.",
    ]
    path.write_text("\n".join([header, rows[0], ""]))
    assert describe(read_hardware(path))[0].startswith("1 sample in 0.0 s: at least 10.0 GB of 16.0 GB")
    path.write_text("time,session\n2026-01-31T12:00:00+00:00,1\n")
    assert describe(read_hardware(path)) == ["1 sample in 0.0 s: unknown."]
