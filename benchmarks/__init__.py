"""This package against other tools: ``python -m benchmarks`` from the root of a checkout; see README.md."""
