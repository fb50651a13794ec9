"""What a run settles before and between its stages: backend, defaults, the ways to an artifact, and its folder."""
