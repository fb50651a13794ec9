"""What every room may use: files, records, printing, randomness, texts, counting."""
