"""Learned roundings: a calibrated network's weights are rounded up or down so that its layers' outputs come nearest."""
