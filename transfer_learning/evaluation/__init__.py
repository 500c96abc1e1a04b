"""What predictions are worth: numbers with intervals, and figures."""
