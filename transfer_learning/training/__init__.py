"""Phases, epochs and updates, and the checkpoints from which they go on to the same bits."""
