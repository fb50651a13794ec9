"""The machine that a run is on: what it offers, and what was measured there."""
