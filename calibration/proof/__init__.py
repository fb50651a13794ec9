"""What was captured is the user's own module: how near, and the first node where it is not."""
