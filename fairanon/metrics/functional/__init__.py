"""The formulas behind the metrics, as pure functions."""
