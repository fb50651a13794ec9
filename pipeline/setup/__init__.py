"""What a run settles before and between its stages: backend, defaults, images, and its folder."""
