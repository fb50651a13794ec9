"""The linter of artifacts: rules that a file shows by itself, without any runtime."""
