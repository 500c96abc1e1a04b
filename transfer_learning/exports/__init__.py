"""Exported files: one module per format, the table of them, their check against the run, and the model card."""
