"""The smallest scale that anything here is given."""

# [ours] Neither it nor the product of two is denormal in float32, which runtimes may flush to zero, and a grid this
# fine resolves nothing that a network of normalised tensors would notice.
SMALLEST_SCALE = 2.0**-24
