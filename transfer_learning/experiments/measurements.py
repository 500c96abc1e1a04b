"""Measurements in child processes, collected in a JSON file that a later call of the same benchmark adds to.

This module imports nothing large: a child's peak memory starts at that of the process that starts it.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from transfer_learning.errors import UserError
from transfer_learning.machine.resources import processor_name, total_bytes, usable_cores
from transfer_learning.storage.files import read_json

ROOT = Path(__file__).parents[2]
OWN_PACKAGES = ("tensorflow", "keras", "pillow")


class MeasurementFailed(Exception):
    """A child ended with an error; the message is the last line of its standard error."""


def open_document(
    path: Path, kind: str, settings: Mapping[str, Any], command: str, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the content of the JSON file, or a new document, with a new session in it.

    Args:
        kind: the name of the benchmark.
        settings: what two sessions must share for their numbers to be comparable.
        command: the command line of this session.
        versions: of further packages than `OWN_PACKAGES`, by name.

    Raises:
        UserError: the file was measured on another machine or with other settings.
    """
    document: dict[str, Any] = {"kind": kind, "settings": dict(settings), "machine": describe_machine()}
    if path.exists():
        found = read_json(path)
        for part in document:
            if found.get(part) != document[part]:
                raise UserError(
                    f"{path} was measured with {part} {json.dumps(found.get(part))}, not {json.dumps(document[part])}; "
                    "choose another --out."
                )
        document = found
    own = {"python": platform.python_version(), **versions_of(sys.executable, OWN_PACKAGES)}
    session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
    document.setdefault("sessions", []).append(session | {"versions": own | dict(versions)})
    document.setdefault("measurements", {})
    document["left_out"] = {}
    return document


def describe_machine() -> dict[str, Any]:
    """Processor, usable cores, memory, and whether TensorFlow turns oneDNN on by itself."""
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_gb": round(total_bytes() / 1e9),
        "onednn_by_itself": "avx512_vnni" in words,  # TensorFlow's own rule where TF_ENABLE_ONEDNN_OPTS is not set
    }


def run_child(
    python: str, module: str, arguments: Sequence[str], environment: Mapping[str, str | None]
) -> dict[str, Any]:
    """Runs ``python -m module arguments`` to its end and returns the JSON object in its last line of output.

    Added to it: `wall_seconds`; `cpu_seconds`, user and system, with all its children; `peak_mb`, the resident memory
    of its largest process.

    Args:
        environment: variables to set; None unsets one.

    Raises:
        MeasurementFailed: it ended with an error or printed no JSON.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    wanted = {**os.environ, "PYTHONPATH": path, **environment}
    variables = {name: value for name, value in wanted.items() if value is not None}
    command = [python, "-m", module, *arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as problems:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=problems, env=variables)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)  # else Popen takes it for a process that still runs
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - started
        lines = _lines_of(output)
        if process.returncode != 0:
            raise MeasurementFailed((_lines_of(problems) or lines or [f"exit code {process.returncode}"])[-1])
        try:
            figures = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise MeasurementFailed("it printed no figures") from None
    peak_mb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return figures | {"wall_seconds": wall, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": peak_mb}


def _lines_of(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def versions_of(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of `packages` that are installed for the interpreter `python`."""
    program = (
        "import importlib.metadata as m, json, sys; all = {d.name.lower(): d.version for d in m.distributions()}; "
        "print(json.dumps({name: all[name] for name in sys.argv[1:] if name in all}))"
    )
    return json.loads(subprocess.check_output([python, "-c", program, *packages], text=True))


def heading(document: Mapping[str, Any]) -> str:
    """Hardware, versions and command of the last session, as a list."""
    session, machine = document["sessions"][-1], document["machine"]
    installed = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    sizes = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in document["settings"].items())
    by_itself = "on" if machine["onednn_by_itself"] else "off"
    return (
        f"* Hardware: {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB of memory. "
        f"TensorFlow's own setting of oneDNN here is {by_itself}; this package turns it on everywhere.\n"
        f"* Versions: {installed}\n* Command: `{session['command']}`, {session['started'][:10]} ({sizes})"
    )


def left_out_lines(document: Mapping[str, Any]) -> list[str]:
    """One sentence per measurement that failed, with the reason."""
    return [f"Left out: {name} ({reason})." for name, reason in document["left_out"].items()]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
