"""What a file computes in exact integers, and where a runtime differs from it."""
