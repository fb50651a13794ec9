"""The numerics of quantisation: capture, folding, plans, ranges and fake quantisation. Knows no target."""
