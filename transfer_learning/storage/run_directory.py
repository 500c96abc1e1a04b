"""The run directory: every verb after `run` takes one and writes into it, and this file alone knows its file names."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from transfer_learning.config import RunConfig, difference, named
from transfer_learning.errors import UserError
from transfer_learning.storage.files import write_text

# What flock says on file systems without it, as some clusters have; there no second process can be refused.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunDir:
    """The paths inside one run directory."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """What was asked for: every field of the RunConfig."""
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        """Versions, device, git commit, dataset fingerprint, one entry a session."""
        return self.path / "environment.json"

    @property
    def notes(self) -> Path:
        """The automatic choices, each with its reason."""
        return self.path / "notes.json"

    @property
    def log(self) -> Path:
        """Everything that the sessions of the run printed, with time and level."""
        return self.path / "log.txt"

    @property
    def foresight(self) -> Path:
        """The stages of the run: what was foretold of their time and disk, and what they took."""
        return self.path / "foresight.json"

    @property
    def manifest(self) -> Path:
        """One row an example: id, file, sha256, label, split, width, height, problem."""
        return self.path / "manifest.csv"

    @property
    def ignored(self) -> Path:
        """One row for each file of the dataset's folder that is no example: file, reason."""
        return self.path / "ignored.csv"

    @property
    def checkpoint(self) -> Path:
        """To continue: the last two states of the training."""
        return self.path / "checkpoint"

    @property
    def history(self) -> Path:
        """One row an epoch: loss, accuracy, learning rate; the same bits however often the run was stopped."""
        return self.path / "history.csv"

    @property
    def timings(self) -> Path:
        """One row an epoch: seconds and images per second, which no two runs share."""
        return self.path / "timings.csv"

    @property
    def hardware(self) -> Path:
        """One row a sample: what processors, memory, disks and GPUs did, images per second, learning rate."""
        return self.path / "hardware.csv"

    @property
    def model(self) -> Path:
        """To use: images in, probabilities out."""
        return self.path / "model.keras"

    @property
    def evaluation(self) -> Path:
        """The results on the split that the run is judged by."""
        return self.path / "evaluation.json"

    @property
    def classification_report(self) -> Path:
        return self.path / "classification_report.txt"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The page; written last, so that a run with a report is a finished run."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def csv_log(self) -> Path:
        return self.path / "csv_log.csv"

    def predictions(self, split: str, tta: bool = False) -> Path:
        """One row per image: id, label, predicted class, confidence, probabilities; with or without augmentation."""
        return self.path / "predictions" / f"{split}{'_views' if tta else ''}.csv"

    def evaluation_of(self, split: str, tta: bool = False) -> Path:
        """The results of `evaluate` for a split, with or without test-time augmentation."""
        return self.path / f"evaluation_{split}{'_views' if tta else ''}.json"

    def comparison_of(self, split: str) -> Path:
        """The results of `evaluate --paired` for a split, in a directory of their own."""
        return self.path / f"comparison_{split}.json"

    def comparison_page_of(self, split: str) -> Path:
        """The report of `comparison_of`."""
        return self.path / f"comparison_{split}.html"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def is_finished(self) -> bool:
        return self.report.exists()

    def read_config(self) -> RunConfig:
        """The config of the run; UserError where the file is missing or damaged, or says what no `run` accepts."""
        config = RunConfig.from_json(self.config.read_text(encoding="utf-8", errors="replace"), str(self.config))
        config.check()
        return config

    @contextmanager
    def begun(self, config: RunConfig) -> Iterator[None]:
        """Holds the run for this process, and writes its config ahead of everything else.

        So a run that is killed at any later moment can be continued. One that a UserError ends before its first
        checkpoint could only meet the same error again, and leaves nothing behind.

        Raises:
            UserError: the directory holds a finished run, a run with another config, or one that another process has.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():  # ahead of every look: another process may just have begun, or finished, this run
            if self.is_finished:
                raise UserError(f"{self.path} holds a finished run (see {self.report}); choose another directory.")
            is_new = not self.config.exists()
            if not is_new and (fields := difference(self.read_config(), config)):
                raise UserError(
                    f"{self.path} was begun with another config ({named(fields)}); restore it, or choose another directory."
                )
            if is_new:
                write_text(self.config, config.to_json())
            try:
                yield
            except UserError:
                if is_new and not self.checkpoint.exists():
                    written = (self.notes, self.foresight, self.environment, self.manifest, self.ignored, self.config)
                    for file in (*written, self.hardware, self.log, self.lock):
                        file.unlink(missing_ok=True)
                    shutil.rmtree(self.tensorboard, ignore_errors=True)
                    with suppress(OSError):
                        self.path.rmdir()  # unless there is something else in it
                raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process; the lock goes with the process, however it ends.

        Raises:
            UserError: another process has it.
        """
        # A link would be followed, and what it points to emptied: a run directory may be a stranger's.
        with open(os.open(self.lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is being written by another process; wait for it to end, or choose another --run-dir."
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            yield


def new_run_dir(path: str | os.PathLike | None, name: str) -> RunDir:
    """Names the directory of a new run: `path`, or a new one under `runs/` that bears `name` and the time.

    Raises:
        UserError: `path` holds a finished run, an unfinished one, or something else; each with the way out.
    """
    if path is None:
        path = Path("runs") / f"{name.replace(':', '_')}-{datetime.now():%Y%m%d-%H%M%S}"  # of keras:NAME
        if path.exists():  # two runs in one second
            path = path.with_name(f"{path.name}-{os.getpid()}")
    run_dir = RunDir(Path(path))
    if run_dir.path.exists() and not run_dir.path.is_dir():
        raise UserError(f"--run-dir {path} is a file; a new or empty directory was expected, so choose another name.")
    if run_dir.config.exists():
        if run_dir.is_finished:
            raise UserError(
                f"--run-dir {path} holds a finished run (see {run_dir.report}); choose another directory, or delete it."
            )
        raise UserError(
            f"--run-dir {path} holds an unfinished run; continue it with --resume {path}, or choose another directory."
        )
    # Hidden files do not count: a run that was killed in its first moment leaves its lock behind.
    if run_dir.path.is_dir() and any(not entry.name.startswith(".") for entry in run_dir.path.iterdir()):
        raise UserError(f"--run-dir {path} holds files that are no run of ours; choose a new or an empty directory.")
    return run_dir


def existing_run_dir(path: str | os.PathLike) -> RunDir:
    """Opens a run directory that some `run` made.

    Raises:
        UserError: there is no such directory, it holds no `config.json`, or a link in it leads out of it: what is read
            and written there, a stranger may have chosen.
    """
    run_dir = RunDir(Path(path))
    if not run_dir.path.is_dir():
        raise UserError(f"There is no run directory {path}; give the directory that `run` printed, such as runs/NAME.")
    if not run_dir.config.exists():
        raise UserError(f"{path} is no run directory: it has no config.json; give the directory that `run` printed.")
    inside = run_dir.path.resolve()
    for folder, folders, files in os.walk(run_dir.path):
        for entry in (Path(folder, name) for name in (*folders, *files)):
            if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
                raise UserError(
                    f"The run directory {path} holds the link {entry.relative_to(run_dir.path)}, which leads out of it; put "
                    "what it points to in its place, if you trust it."
                )
    return run_dir


def evaluated_run_dir(path: str | os.PathLike) -> RunDir:
    """Opens the directory of a run that came to its end.

    Raises:
        UserError: as `existing_run_dir`; or the run was stopped before its evaluation.
    """
    run_dir = existing_run_dir(path)
    if not run_dir.evaluation.exists():
        raise UserError(f"The run {path} is unfinished; continue it with run --resume {path}, then call this again.")
    return run_dir
