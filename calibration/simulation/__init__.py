"""The network that rounds as the device will: grids that learn, integer operations, and the frozen result."""
