"""The bundle, and the programs that it brings to its device."""
