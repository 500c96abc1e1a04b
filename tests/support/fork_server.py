"""Runs modules as ``python -m`` does, each in a process forked from this one, which has only imported the program.

TensorFlow is imported once for all of them, and runs leave out figures and inference file. A line of standard input is a
JSON list: the file that gets the output, the module, its arguments. A line of standard output is the exit status, negative
for a signal.
"""

import json
import os
import runpy
import sys
import traceback

import scipy.stats  # noqa: F401  (a run imports these two late: here once for all)
import sklearn.metrics  # noqa: F401

from tests.support import shortened


def child(output: str, module: str, *arguments: str) -> int:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    shortened.without_files().__enter__()  # imports the program, but computes nothing in this process
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = child(*json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
