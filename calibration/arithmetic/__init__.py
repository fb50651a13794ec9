"""Integers as runtimes compute with them, to the last bit, and the gradients of rounding."""
