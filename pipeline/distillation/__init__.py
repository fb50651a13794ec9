"""Label-free distillation: losses between a teacher and a student, their schedules and their cost."""
