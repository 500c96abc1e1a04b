"""The jobs that `benchmark.py` measures, each in a process of its own: ours, and the same work done by others.

`cases.py` is the table of them and `tables.py` writes the results; every other file is a program, of one peer or of what
peers share. A program holds a function a job, and what it imports need not be installed where the benchmark itself runs
(requirements-peers.txt).
"""
