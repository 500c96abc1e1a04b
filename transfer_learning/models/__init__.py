"""Backbones, the classifier on top of one, cached activations, and readers of weights files."""
