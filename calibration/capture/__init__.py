"""From the user's own module to a graph of ATen operators, and what the module must be for it."""
