"""What the outputs of networks hold, and how far two columns of them say the same."""
