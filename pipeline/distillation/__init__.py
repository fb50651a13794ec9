"""Distillation: losses between a teacher and a student, one with labels where asked for, schedules, their cost."""
