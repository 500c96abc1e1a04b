"""The figures of a run, each a matplotlib Figure; `table.FIGURES` lists those that every run draws."""
