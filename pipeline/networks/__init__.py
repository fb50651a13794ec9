"""Networks by name, with their weights and what their outputs mean."""
