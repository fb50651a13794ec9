"""Networks that ship with the package, one architecture per file."""
