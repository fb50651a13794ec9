"""Losses between a teacher and a student, by name."""
