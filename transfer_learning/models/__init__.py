"""Backbones and the classifier on top of one: a new backbone is a row of `backbones`."""
