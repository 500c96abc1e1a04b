"""What tests share: images, damaged files, faults and kills."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_without(modules, code, *arguments, cwd=ROOT):
    """Runs a program in another Python that cannot import these modules; it has to end with exit code 0."""
    program = f"import sys\nfor name in {modules.split()}: sys.modules[name] = None\n{code}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    return done
