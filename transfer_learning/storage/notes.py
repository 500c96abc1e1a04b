"""The automatic choices and warnings of a run, which its report lists."""

import logging
from collections.abc import Sequence
from pathlib import Path

from transfer_learning.storage.files import read_json, write_json

NOT_NOTED = "transfer_learning.cli"  # the lines of epochs and progress


class NotesHandler(logging.Handler):
    """Writes each distinct message of a run into ``notes.json``, after those of earlier sessions.

    A note is ``{"level": "info" | "warning", "text": ...}``; versions before 0.2 wrote the text alone.
    """

    def __init__(self, path: Path, choices: Sequence[str] = ()):
        super().__init__(logging.INFO)
        self._path = path
        self._notes = [as_note(note) for note in read_json(path)] if path.exists() else []
        self._add(*({"level": "info", "text": text} for text in choices))

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(NOT_NOTED):
            self._add({"level": record.levelname.lower(), "text": record.getMessage()})

    def _add(self, *notes: dict[str, str]) -> None:
        self._notes += [note for note in notes if note not in self._notes]
        write_json(self._path, self._notes)


def as_note(note: dict[str, str] | str) -> dict[str, str]:
    """A note from ``notes.json`` of any version."""
    if isinstance(note, dict):
        return note
    is_warning = note.startswith("Warning: ")
    return {"level": "warning" if is_warning else "info", "text": note.removeprefix("Warning: ")}
