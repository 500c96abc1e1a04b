"""Phases, epochs and train steps, and the checkpoints from which a run resumes bit-exactly."""
