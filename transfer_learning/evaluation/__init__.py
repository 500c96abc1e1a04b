"""Evaluation of predictions: metrics with intervals, calibration, rejection, figures."""
