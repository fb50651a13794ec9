"""The stages of a run: each a function from the artifacts before it to its own."""
