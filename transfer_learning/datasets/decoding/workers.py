"""Decodes image files in separate processes: a file that crashes or hangs the decoder only loses itself.

Each process of `DecodeWorkers` runs this file as a program, reads one request at a time from its standard input and
answers with hash and pixels, so a crash is blamed on the right image. Not forks, since TensorFlow's threads do not
survive them; not `multiprocessing`, which would import a user's unguarded script again.
"""

import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transfer_learning.datasets.dataset import UNREADABLE_FILE, FilePart, Source, is_remote
from transfer_learning.datasets.decoding.decode import (
    MAX_PIXELS,
    Decoded,
    content_hash,
    decode,
    failed,
    limit_pixels,
    read_file,
    to_jpeg,
)
from transfer_learning.datasets.decoding.value_range import Ranges, from_json, to_json

SECONDS_PER_IMAGE = 60
SECONDS_TO_START = 60
MEMORY_PER_IMAGE = 4 << 30  # bytes of address space; 89 million pixels of 16 bits take half of it
CHEAP, SLOW = "cheap", "slow"  # lanes
NICENESS = 10  # of the slow one: a tenth of a core where others need it
SLICES = 20  # per timeout: a pause by Ctrl-Z costs one slice and does not blame an image
LENGTH = struct.Struct(">Q")  # before each frame
# -P: import no modules from the working directory
COMMAND = (sys.executable, "-P", "-m", "transfer_learning.datasets.decoding.workers")
PACKAGE_PARENT = str(Path(__file__).parents[3])


class DecodeWorkers:
    """Processes that decode image files; a thread-safe context manager.

    There are as many processes as threads that decode at the same time; a process is started when it is first needed,
    and again after it died.

    Args:
        size: side of the decoded images in pixels.
        resize: how they become square, as `decode` takes it.
        as_jpeg: return the pixels encoded by `to_jpeg`.
        seconds: timeout per image, after which its process is killed.
        max_pixels: of an image; one that has more is not decoded.
        ranges: of values with more than 8 bits, as `decode` takes them.
        lane: CHEAP refuses images that take longer than CHEAP_PIXELS, a problem of the kind EXPENSIVE; SLOW decodes all at
            low priority.
    """

    def __init__(
        self,
        size: int,
        resize: str,
        as_jpeg: bool = False,
        seconds: float = SECONDS_PER_IMAGE,
        max_pixels: int = MAX_PIXELS,
        ranges: Ranges | None = None,
        lane: str = "",
    ):
        self._size, self._resize, self._as_jpeg, self._seconds = size, resize, as_jpeg, seconds
        self._arguments = json.dumps([size, resize, as_jpeg, seconds, max_pixels, to_json(ranges or {}), lane])
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._is_closed = False

    def __enter__(self) -> "DecodeWorkers":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Kills all processes; a `decode` that runs in another thread returns or raises at once."""
        with self._lock:
            self._is_closed = True
            for worker in self._busy:
                worker.kill()  # the thread that waits for it closes it
        for worker in self._idle:
            worker.close()

    def decode(self, source: Source | bytes) -> tuple[str, Decoded]:
        """Reads an image once, or takes its bytes or pixels; returns its `content_hash` and the result of `decode`.

        Returns:
            The hash, "" for an unreadable file or one that crashed or timed out; and Decoded, with JPEG bytes as its
            pixels if `as_jpeg` is set.

        Raises:
            RuntimeError: the workers are closed, or a process does not even start.
            UserError: an object store does not give the image.
        """
        if isinstance(source, np.ndarray):  # needs no decoder that could crash
            image = decode(source, self._size, self._resize)
            as_jpeg = self._as_jpeg and not image.problem
            return content_hash(source), image._replace(pixels=to_jpeg(image.pixels)) if as_jpeg else image
        if is_remote(source):
            source = source.read_bytes()
        if isinstance(source, bytes):
            frames = [b"null", source]
        else:
            path, *part = source if isinstance(source, FilePart) else (source,)
            frames = [json.dumps([os.path.abspath(path), *part]).encode()]  # also for names that are not UTF-8
        while True:
            worker = self._take()
            try:
                for frame in frames:
                    worker.send(frame)
                digest, width, height, problem, remarks, kind = json.loads(worker.receive(self._seconds))
                content = worker.receive(self._seconds)
            except BrokenPipeError:  # it ended before it got the request: send it to another one
                self._discard(worker)
            except EOFError:
                how = self._discard(worker, patience=1)  # its pipe is closed, so it is about to exit
                return "", failed(UNREADABLE_FILE, f"the decoder died ({how})")
            except TimeoutError:
                self._discard(worker)
                return "", failed(UNREADABLE_FILE, f"decoding it took longer than {self._seconds:g} s")
            except BaseException:
                self._discard(worker)
                raise
            else:
                self._give_back(worker)
                if problem:
                    return digest, failed(kind, problem)
                if self._as_jpeg:
                    return digest, Decoded(bytes(content), width, height, "", remarks)
                pixels = np.frombuffer(content, np.uint8).reshape(self._size, self._size, 3)
                return digest, Decoded(pixels, width, height, "", remarks)

    def map(self, sources: Iterable[Source | bytes]) -> list[tuple[str, Decoded]]:
        """What `decode` returns for each source, in their order, by all cores."""
        from concurrent.futures import ThreadPoolExecutor  # here, because each process imports this file

        from transfer_learning.machine.resources import usable_cores

        with ThreadPoolExecutor(usable_cores()) as threads:
            return list(threads.map(self.decode, sources))

    def _take(self) -> "_Worker":
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _Worker(self._arguments)
        with self._lock:
            if not self._is_closed:
                self._busy.add(worker)
                return worker
        worker.close()
        raise RuntimeError("the workers are closed")

    def _give_back(self, worker: "_Worker") -> None:
        with self._lock:
            self._busy.discard(worker)
            if not self._is_closed:
                self._idle.append(worker)
                return
        worker.close()

    def _discard(self, worker: "_Worker", patience: float = 0) -> str:
        with self._lock:
            self._busy.discard(worker)
        return worker.close(patience)


class _Worker:
    """One process, and the two pipes to it."""

    def __init__(self, arguments: str):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (PACKAGE_PARENT, os.environ.get("PYTHONPATH")))),
            "PYTHONWARNINGS": "",  # a warning made an error would be taken for a damaged image
            "OPENBLAS_NUM_THREADS": "1",  # else NumPy starts one thread per core in each process
            # glibc: reuse the memory of one image for the next; to return it costs a third of the time of a small
            # image.
            "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
        }
        # Ctrl-C reaches every process of a terminal; workers ignore it from their start on and are ended by this
        # process.
        blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process = subprocess.Popen(
                [*COMMAND, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        assert self._process.stdin and self._process.stdout
        self._pipes = self._process.stdin, self._process.stdout
        self._to, self._from = (pipe.fileno() for pipe in self._pipes)
        self._answers = select.poll()
        self._answers.register(self._from, select.POLLIN)
        try:
            self.receive(SECONDS_TO_START)
        except (EOFError, TimeoutError):
            raise RuntimeError(f"the process that decodes images does not start ({self.close()})") from None
        except BaseException:
            self.close()
            raise

    def send(self, content: bytes) -> None:
        rest = memoryview(LENGTH.pack(len(content)) + content)
        while rest:
            rest = rest[os.write(self._to, rest) :]

    def receive(self, seconds: float) -> bytearray:
        """Returns a frame.

        Raises:
            EOFError: the process ended.
            TimeoutError: nothing was received for `seconds`.
        """
        slices_left = [SLICES]
        (length,) = LENGTH.unpack(self._receive(LENGTH.size, seconds, slices_left))
        return self._receive(length, seconds, slices_left)

    def _receive(self, length: int, seconds: float, slices_left: list[int]) -> bytearray:
        received = bytearray(length)
        rest = memoryview(received)
        while rest:
            while not self._answers.poll(seconds / SLICES * 1000):
                slices_left[0] -= 1
                if not slices_left[0]:
                    raise TimeoutError
            count = os.readv(self._from, [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
        return received

    def kill(self) -> None:
        self._process.kill()

    def close(self, patience: float = 0) -> str:
        """Kills the process unless it exits within `patience` seconds; returns its signal or exit code as text."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        code = self._process.wait()
        for pipe in self._pipes:
            pipe.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main() -> None:
    """Answers requests until there are no more, or until the parent process is gone."""
    size, resize, as_jpeg, seconds, max_pixels, ranges, lane = json.loads(sys.argv[1])
    ranges = from_json(ranges)
    limit_pixels(max_pixels, cheap_only=lane == CHEAP)
    if lane == SLOW:
        os.nice(NICENESS)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with suppress(OSError):  # out of memory, the kernel kills this process rather than the run
        Path("/proc/self/oom_score_adj").write_text("500")
    with suppress(OSError, ValueError):  # a small file may decode to much; macOS does not know this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_PER_IMAGE, MEMORY_PER_IMAGE))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints must not get between two frames
    _write(answers, b"ready")
    while len(length := requests.read(LENGTH.size)) == LENGTH.size:
        asked = _asked(requests, *LENGTH.unpack(length))
        # CPU time after which the kernel ends this process, also in a loop that holds Python's lock.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds)
        digest, image = _read_and_decode(asked, size, resize, ranges)
        content = b""
        if not image.problem:
            content = to_jpeg(image.pixels) if as_jpeg else image.pixels.tobytes()
        _write(answers, json.dumps([digest, *image[1:]]).encode(), content)


def _end_with_the_parent() -> None:
    """Exits at once when the parent process has closed the pipe."""
    hang_up = select.poll()
    hang_up.register(0, 0)  # a hang-up is always reported
    hang_up.poll()
    os._exit(0)


def _asked(requests: BinaryIO, length: int) -> Path | FilePart | bytes:
    """What the next request, whose first frame has this length, asks to decode."""
    place = json.loads(requests.read(length))
    if place is None:
        return requests.read(*LENGTH.unpack(requests.read(LENGTH.size)))
    path, *part = place
    return FilePart(Path(path), *part) if part else Path(path)


def _read_and_decode(asked: Path | FilePart | bytes, size: int, resize: str, ranges: Ranges) -> tuple[str, Decoded]:
    """Reads the file once, so that hash and pixels are of the same bytes."""
    try:
        content = asked if isinstance(asked, bytes) else read_file(asked)
    except (OSError, ValueError, MemoryError):
        return "", decode(asked, size, resize)  # for its problem
    return content_hash(content), decode(content, size, resize, ranges)


def _write(answers: BinaryIO, *frames: bytes) -> None:
    answers.writelines(part for frame in frames for part in (LENGTH.pack(len(frame)), frame))
    answers.flush()


if __name__ == "__main__":
    main()
