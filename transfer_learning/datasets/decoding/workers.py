"""Decodes image files in processes that may die: a file that crashes or hangs its decoder costs itself alone.

`DecodeWorkers` is what a run uses. Each of its processes runs this file as a program, takes one image at a time from its
standard input and answers with hash and pixels, so it is known which image a process was at when it ended. They are
new processes and no forks, because TensorFlow's threads would not survive one, and no `multiprocessing`, whose new
processes would run a user's script again unless that guards itself by ``__name__``.
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
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from transfer_learning.datasets.dataset import FilePart
from transfer_learning.datasets.decoding.decode import Decoded, content_hash, decode, read_file, to_jpeg

SECONDS_PER_IMAGE = 60
SECONDS_TO_START = 60
MEMORY_PER_IMAGE = 4 << 30  # bytes of address space: 89 million pixels of 16 bits take 2, with what the libraries take
SLICES = 20  # of such a time: one that passes while Ctrl-Z stops everything costs one slice, and blames no image
LENGTH = struct.Struct(">Q")  # ahead of each frame
COMMAND = (
    sys.executable,
    "-P",
    "-m",
    "transfer_learning.datasets.decoding.workers",
)  # -P: no modules out of the folder
PACKAGE_PARENT = str(Path(__file__).parents[3])


class DecodeWorkers:
    """Processes that decode image files; a context manager, which several threads may use at once.

    There are as many processes as threads that decode at the same moment; each is started when it is first needed, and
    started anew after it died.

    Args:
        size: side of the decoded images in pixels.
        resize: how they become square, as `decode` takes it.
        as_jpeg: return the pixels encoded by `to_jpeg`.
        seconds: what an image may take; then its process is killed.
    """

    def __init__(self, size: int, resize: str, as_jpeg: bool = False, seconds: float = SECONDS_PER_IMAGE):
        self._size, self._resize, self._as_jpeg, self._seconds = size, resize, as_jpeg, seconds
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._is_closed = False

    def __enter__(self) -> "DecodeWorkers":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Kills all processes at once; a `decode` that another thread waits for returns or raises at once."""
        with self._lock:
            self._is_closed = True
            for worker in self._busy:
                worker.kill()  # whoever waits for it sees its end, and closes it
        for worker in self._idle:
            worker.close()

    def decode(self, source: Path | FilePart) -> tuple[str, Decoded]:
        """Reads an image once; returns the SHA-256 of its bytes ("" if unreadable) and what `decode` makes of them.

        Returns:
            The hash and Decoded; its pixels are `bytes` where `as_jpeg` is set. Of a file on which the process died or
            took too long, the hash is "" and the problem says so.

        Raises:
            RuntimeError: the workers are closed, or a process does not even start.
        """
        path, *part = source if isinstance(source, FilePart) else (source,)
        request = json.dumps([os.path.abspath(path), *part]).encode()  # names that are no UTF-8 are carried along
        while True:
            worker = self._take()
            try:
                worker.send(request)
                digest, width, height, problem, remarks = json.loads(worker.receive(self._seconds))
                pixels = worker.receive(self._seconds)
            except BrokenPipeError:  # it ended before it was given the image: another one gets it
                self._discard(worker)
            except EOFError:
                how = self._discard(worker, patience=1)  # its pipe is closed, so it is ending in its own way
                return "", Decoded(None, 0, 0, f"the decoder died ({how})")
            except TimeoutError:
                self._discard(worker)
                return "", Decoded(None, 0, 0, f"decoding it took longer than {self._seconds:g} s")
            except BaseException:
                self._discard(worker)
                raise
            else:
                self._give_back(worker)
                if problem:
                    return digest, Decoded(None, 0, 0, problem)
                if self._as_jpeg:
                    return digest, Decoded(bytes(pixels), width, height, "", remarks)
                pixels = np.frombuffer(pixels, np.uint8).reshape(self._size, self._size, 3)
                return digest, Decoded(pixels, width, height, "", remarks)

    def _take(self) -> "_Worker":
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self._size, self._resize, "jpeg" if self._as_jpeg else "pixels", self._seconds)
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

    def __init__(self, *arguments: int | float | str):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (PACKAGE_PARENT, os.environ.get("PYTHONPATH")))),
            "OPENBLAS_NUM_THREADS": "1",  # NumPy would start a thread a core in each process
            # For glibc: memory of one image serves the next, instead of going back to the system and coming again page
            # by page, which takes a third of the time of a small image.
            "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
        }
        # Ctrl-C reaches every process of a terminal, and what it ends is for this one to say. A blocked signal stays
        # blocked in a new program, and so from its first moment on.
        blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
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
            TimeoutError: it does not come within `seconds`.
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
        """Ends the process unless it does so within `patience` seconds; returns how it ended, in words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        code = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main() -> None:
    """Answers requests until there are no more, or until the process that sends them has gone."""
    size, resize, kind, seconds = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with suppress(OSError):  # where memory runs out, this process is taken and not the run
        Path("/proc/self/oom_score_adj").write_text("500")
    with suppress(OSError, ValueError):  # a file whose header is modest may still grow; macOS refuses such a limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_PER_IMAGE, MEMORY_PER_IMAGE))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between two frames
    _write(answers, b"ready")
    while len(length := requests.read(LENGTH.size)) == LENGTH.size:
        path, *part = json.loads(requests.read(*LENGTH.unpack(length)))
        asked = FilePart(Path(path), *part) if part else Path(path)
        # Processor time, after which the kernel ends this process: for a decoder in whose loop no thread of Python runs.
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds)
        digest, image = _read_and_decode(asked, size, resize)
        content = b""
        if not image.problem:
            content = to_jpeg(image.pixels) if kind == "jpeg" else image.pixels.tobytes()
        _write(answers, json.dumps([digest, *image[1:]]).encode(), content)


def _end_with_the_parent() -> None:
    """Ends this process, whatever it is doing, once nobody can write requests any more."""
    hang_up = select.poll()
    hang_up.register(0, 0)  # a hang-up is reported without being asked for
    hang_up.poll()
    os._exit(0)


def _read_and_decode(asked: Path | FilePart, size: int, resize: str) -> tuple[str, Decoded]:
    """The pixels are of the very bytes that the hash is of, whatever happens to the file."""
    try:
        content = read_file(asked)
    except (OSError, ValueError, MemoryError):
        return "", decode(asked, size, resize)  # which says why
    return content_hash(content), decode(content, size, resize)


def _write(answers: BinaryIO, *frames: bytes) -> None:
    answers.writelines(part for frame in frames for part in (LENGTH.pack(len(frame)), frame))
    answers.flush()


if __name__ == "__main__":
    main()
