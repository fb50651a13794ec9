"""The story of a run: from a float teacher and unlabelled images to a network proven on its runtime."""

__version__ = "0.1.0"
