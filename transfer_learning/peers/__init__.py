"""The jobs that `benchmark.py` measures, each in a process of its own: ours, and the same work done by others.

A file here is a program of one peer. It holds a function a job, and what it imports need not be installed where the
benchmark itself runs (requirements-peers.txt).
"""
