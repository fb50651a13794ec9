"""One training run: its task, its teachers, its steps, its end."""
