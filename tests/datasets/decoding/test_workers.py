"""Workers that die, hang or lose their parent: one image pays, every other one is unharmed, and no process stays."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support import ROOT, bad_images
from tests.support.faulty_worker import FAULTY_COMMAND
from transfer_learning.datasets.dataset import UNREADABLE_FILE, FilePart
from transfer_learning.datasets.decoding import workers as decode_workers
from transfer_learning.datasets.decoding.decode import EXPENSIVE, content_hash, decode, failed, from_jpeg
from transfer_learning.datasets.decoding.workers import CHEAP, NICENESS, SLOW, DecodeWorkers

SIZE = 8
DEADLINE = 60  # seconds, for what takes a fraction of one: only a failing test waits so long

# A worker that reads pipes, too, and so waits as long as a test wants; the real one refuses them.
PATIENT_WORKER = """
from transfer_learning.datasets.decoding import workers as decode_worker

decode_worker.read_file = lambda path: path.read_bytes()
decode_worker.main()
"""
PATIENT_COMMAND = (sys.executable, "-c", PATIENT_WORKER)


@pytest.fixture
def image(tmp_path):
    """Writes a PNG file of noise with something behind its end; returns its path."""
    rng = np.random.default_rng(0)

    def write(name="image", behind=b""):
        path = tmp_path / f"{name}.png"
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes() + behind)
        return path

    return write


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.setattr(decode_workers, "COMMAND", FAULTY_COMMAND)


def assert_decoded(answer, path):
    digest, decoded = answer
    expected = decode(path, SIZE, "squash")
    assert digest == content_hash(path) and decoded[1:] == expected[1:]
    np.testing.assert_array_equal(decoded.pixels, expected.pixels)


def processes():
    return psutil.Process().children()


def assert_gone(pid):
    deadline = time.monotonic() + DEADLINE
    while (
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ):  # in a container without init
        assert time.monotonic() < deadline, f"process {pid} stays"
        time.sleep(0.01)


def test_a_worker_returns_what_the_decoder_returns(image, tmp_path, monkeypatch):
    good, missing, broken = image(), tmp_path / "missing.png", tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with DecodeWorkers(SIZE, "squash") as workers:
        assert processes() == [], "none is started before it is needed"
        assert_decoded(workers.decode(good), good)
        assert workers.decode(missing) == ("", decode(missing, SIZE, "squash"))
        digest, decoded = workers.decode(broken)
        assert digest == content_hash(broken) and decoded.pixels is None and "cannot be decoded" in decoded.problem
        monkeypatch.chdir(tmp_path)
        assert_decoded(workers.decode(Path(good.name)), good)


def test_a_part_of_a_file_is_decoded_like_a_file(image, tmp_path):
    good, many = image(), tmp_path / os.fsdecode(b"many \xff")  # no UTF-8
    content = good.read_bytes()
    many.write_bytes(bytes(1000) + content + bytes(10))
    with DecodeWorkers(SIZE, "squash") as workers:
        assert_decoded(workers.decode(FilePart(many, 1000, len(content))), good)
        digest, decoded = workers.decode(FilePart(many, 1011, len(content)))
        assert digest == "" and "ends before byte" in decoded.problem
        digest, decoded = workers.decode(FilePart(many, 0, 1000))
        assert digest == content_hash(bytes(1000)) and "cannot be decoded" in decoded.problem
        assert len(processes()) == 1
    assert processes() == []
    with pytest.raises(RuntimeError, match="closed"):
        workers.decode(good)
    assert processes() == []


def test_jpegs_come_as_bytes(image):
    path = image()
    with DecodeWorkers(SIZE, "squash", as_jpeg=True) as workers:
        digest, decoded = workers.decode(path)
    assert digest == content_hash(path) and (decoded.width, decoded.height) == (10, 12)
    assert isinstance(decoded.pixels, bytes) and from_jpeg(decoded.pixels).shape == (SIZE, SIZE, 3)


def test_names_that_are_no_text_and_folders_with_modules_of_known_names_do_no_harm(image, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the folder of the images was taken')")
    monkeypatch.chdir(tmp_path)
    path = image().rename(tmp_path / os.fsdecode(b"\xff\n .png"))
    with DecodeWorkers(SIZE, "squash") as workers:
        assert_decoded(workers.decode(path), path)


@pytest.mark.parametrize(
    ("behind", "seconds", "problem"),
    [
        (b"exit", 60, "the decoder died (exit code 3)"),
        (b"crash", 60, "the decoder died (SIGSEGV)"),
        (b"abort", 60, "the decoder died (SIGABRT)"),
        (b"raise", 60, "the decoder died (exit code 1)"),
        (b"hang", 2, "decoding it took longer than 2 s"),
        (b"burn", 2, "decoding it took longer than 2 s"),
    ],
)
def test_an_image_that_ends_or_hangs_its_worker_costs_itself_alone(behind, seconds, problem, image, faulty):
    bad, *good = image("bad", behind), *(image(str(number)) for number in range(6))
    with DecodeWorkers(SIZE, "squash", seconds=seconds) as workers, ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(workers.decode, [*good[:3], bad, *good[3:]]))
    assert answers.pop(3) == ("", failed(UNREADABLE_FILE, problem))
    for path, answer in zip(good, answers, strict=True):
        assert_decoded(answer, path)
    assert processes() == []


def test_what_a_library_prints_comes_not_between_the_answers(image, faulty, capfd):
    path = image(behind=b"print")
    with DecodeWorkers(SIZE, "squash") as workers:
        for _ in range(2):
            assert_decoded(workers.decode(path), path)
    assert capfd.readouterr() == ("", "a library's remark\nanother one" * 2)


def test_an_image_that_takes_more_memory_than_a_worker_may_have_costs_itself_alone(image, tmp_path, monkeypatch):
    worker = "from transfer_learning.datasets.decoding import workers as d; d.MEMORY_PER_IMAGE = 500 << 20; d.main()"
    monkeypatch.setattr(decode_workers, "COMMAND", (sys.executable, "-c", worker))
    large, good = tmp_path / "large.png", image()
    Image.new("RGBA", (9000, 9000)).save(large, compress_level=1)
    with DecodeWorkers(SIZE, "squash") as workers:
        assert_decoded(workers.decode(good), good)
        before = processes()
        assert workers.decode(large) == (
            content_hash(large),
            failed(UNREADABLE_FILE, "decoding it takes too much memory"),
        )
        assert_decoded(workers.decode(good), good)
        assert processes() == before


def test_a_small_file_that_would_be_decoded_for_minutes_has_its_time(image, tmp_path):
    """240 KB; each of its scans is a walk over 81 million pixels."""
    bomb, good = tmp_path / "bomb.jpg", image()
    bomb.write_bytes(bad_images.jpeg_of_many_scans(0, 1500, (9000, 9000)))
    with DecodeWorkers(SIZE, "squash", seconds=1) as workers:
        assert workers.decode(bomb) == ("", failed(UNREADABLE_FILE, "decoding it took longer than 1 s"))
    with DecodeWorkers(SIZE, "squash") as workers:
        assert_decoded(workers.decode(good), good)


def test_lanes_refuse_what_is_expensive_and_leave_the_processor_to_others(tmp_path):
    plain = Image.new("RGB", (1300, 1200))
    sizes = {"PNG": {}, "JPEG": {}, "progressive": {"format": "JPEG", "progressive": True}}
    for name, options in sizes.items():
        plain.save(tmp_path / name, **{"format": name} | options)
    plain.resize((4000, 3900)).save(tmp_path / "large JPEG", "JPEG")
    with DecodeWorkers(SIZE, "squash", lane=CHEAP) as cheap, DecodeWorkers(SIZE, "squash", lane=SLOW) as slow:
        kinds = {name: cheap.decode(tmp_path / name)[1].kind for name in (*sizes, "large JPEG")}
        assert kinds == {"PNG": EXPENSIVE, "JPEG": "", "progressive": "", "large JPEG": EXPENSIVE}
        niceness = os.nice(0)
        assert [one.nice() for one in processes()] == [niceness]
        assert slow.decode(tmp_path / "PNG")[1].problem == ""
        assert max(one.nice() for one in processes()) == min(19, niceness + NICENESS)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(make, tmp_path):
    make(tmp_path / "x.png")
    with DecodeWorkers(SIZE, "squash") as workers:
        digest, decoded = workers.decode(tmp_path / "x.png")
    assert (digest, decoded.problem) == ("", "cannot be decoded (it is a folder, a pipe or a device)")


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    """A file on which a patient worker waits for ever; `opened` returns when one does."""
    monkeypatch.setattr(decode_workers, "COMMAND", PATIENT_COMMAND)
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    return path


def opened(pipe):
    return os.open(pipe, os.O_WRONLY)  # waits for a reader


def test_a_worker_that_is_killed_while_it_decodes_costs_its_image_alone(image, pipe):
    good = image()
    with DecodeWorkers(SIZE, "squash") as workers, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(workers.decode, pipe)
        writer = opened(pipe)
        (worker,) = processes()
        worker.kill()
        assert answer.result(DEADLINE) == ("", failed(UNREADABLE_FILE, "the decoder died (SIGKILL)"))
        os.close(writer)
        assert_decoded(workers.decode(good), good)


def test_a_worker_that_is_killed_between_two_images_costs_none(image):
    path = image()
    with DecodeWorkers(SIZE, "squash") as workers:
        workers.decode(path)
        (worker,) = processes()
        worker.kill()
        worker.wait(DEADLINE)
        assert_decoded(workers.decode(path), path)


def test_closing_ends_a_worker_that_is_at_work_and_whoever_waits_for_it(pipe):
    workers, ended = DecodeWorkers(SIZE, "squash"), []
    thread = threading.Thread(target=lambda: ended.append(workers.decode(pipe)), daemon=True)
    thread.start()
    writer = opened(pipe)
    workers.close()
    thread.join(DEADLINE)
    assert ended and processes() == []
    os.close(writer)


def test_ctrl_c_is_left_to_the_parent(pipe, image):
    with DecodeWorkers(SIZE, "squash") as workers, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(workers.decode, pipe)
        writer = opened(pipe)
        (worker,) = processes()
        worker.send_signal(signal.SIGINT)
        path = image()
        os.write(writer, path.read_bytes())
        os.close(writer)
        assert_decoded(answer.result(DEADLINE), path)
        assert processes() == [worker]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# No `if __name__ == "__main__"`, and a thread that waits for a worker, as in a run.
PARENT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from transfer_learning.datasets.decoding import workers as decode_worker

decode_worker.COMMAND = (sys.executable, "-c", sys.argv[1])
workers = decode_worker.DecodeWorkers(8, "squash")
ThreadPoolExecutor(1).submit(workers.decode, Path(sys.argv[2])).result()
print("decoded", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("is_idle", [False, True])
def test_workers_end_when_their_parent_is_killed_whatever_they_do(is_idle, pipe, image):
    command = [sys.executable, "-c", PARENT, PATIENT_WORKER, pipe]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        writer = opened(pipe)
        (worker,) = psutil.Process(parent.pid).children()
        if is_idle:
            os.write(writer, image().read_bytes())
            os.close(writer)
            assert parent.stdout.readline() == b"decoded\n"
        parent.kill()
    assert_gone(worker.pid)
    if not is_idle:
        os.close(writer)


def test_a_worker_in_whose_loop_no_python_runs_is_ended_by_the_kernel(image):
    """Its parent is alive and patient: it is the limit of its own processor time that ends it."""
    request = json.dumps([str(image(behind=b"burn"))]).encode()
    arguments = json.dumps([8, "squash", False, 0.1, decode_workers.MAX_PIXELS, {}, ""])
    with subprocess.Popen(
        [*FAULTY_COMMAND, arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        worker.stdin.write(decode_workers.LENGTH.pack(len(request)) + request)
        worker.stdin.flush()
        try:
            assert worker.wait(DEADLINE) == -signal.SIGPROF
        finally:
            worker.kill()


INTERRUPTED = """
import signal, sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have their background jobs ignore it, and so the tests
from transfer_learning.datasets.decoding import workers as decode_worker
from transfer_learning.datasets.dataset import Dataset, Example
from transfer_learning.datasets.decoding.pixel_cache import cached_images
from transfer_learning.storage.cache import Cache

decode_worker.COMMAND = (sys.executable, "-c", sys.argv[1])
examples = tuple(Example(str(number), "a", "", Path(path)) for number, path in enumerate(sys.argv[3:]))
cached_images(Dataset("some", ("a",), examples), 8, "squash", Cache(Path(sys.argv[2])))
"""


def test_ctrl_c_ends_the_decoding_at_once_and_leaves_no_process(pipe, image, tmp_path):
    paths = [pipe, *(image(str(number)) for number in range(20))]
    command = [sys.executable, "-c", INTERRUPTED, PATIENT_WORKER, tmp_path / "cache", *paths]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        writer = opened(pipe)
        workers = psutil.Process(parent.pid).children()
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        try:
            _, errors = parent.communicate(timeout=DEADLINE)
        finally:
            parent.kill()
        assert parent.returncode == -signal.SIGINT and errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
    assert workers
    for worker in workers:
        assert_gone(worker.pid)
    os.close(writer)


def test_a_worker_imports_what_decoding_needs_and_no_more():
    code = textwrap.dedent("""
        import sys
        import transfer_learning.datasets.decoding.workers
        print(*sorted({name.split(".")[0] for name in sys.modules} & {"tensorflow", "keras", "pandas", "scipy", "rich"}))
        print("PIL" in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
