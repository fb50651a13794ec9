"""What is measured of a result, what it must reach, and what to do where it does not."""
