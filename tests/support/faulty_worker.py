"""A worker that does what the end of a file says; the bytes after a PNG image are nobody's concern."""

import sys

FAULTY_WORKER = """
import os, signal, sys, time
from transfer_learning.datasets.decoding import workers as decode_worker

decode = decode_worker.decode

def decode_with_faults(content, size, resize, ranges):
    if content.endswith(b"exit"):
        os._exit(3)
    if content.endswith(b"crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if content.endswith(b"hang"):
        time.sleep(1000)
    if content.endswith(b"burn"):
        sum(range(10**12))  # not for a moment is Python's lock free
    if content.endswith(b"abort"):
        os.abort()
    if content.endswith(b"raise"):
        raise SystemExit("a decoder's last words")
    if content.endswith(b"print"):
        print("a library's remark", flush=True)
        os.write(1, b"another one")
    return decode(content, size, resize, ranges)

decode_worker.decode = decode_with_faults
decode_worker.main()
"""
FAULTY_COMMAND = (sys.executable, "-c", FAULTY_WORKER)
