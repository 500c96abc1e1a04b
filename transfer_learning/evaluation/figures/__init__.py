"""The figures of a run, each a matplotlib Figure; `table.FIGURES` lists those that every run draws."""

DOTS_PER_INCH = 150  # here, because reports need it and no matplotlib
