"""Datasets: sources, decoding, splits, batches, audit."""
