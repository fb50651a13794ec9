"""Where a network is rounded: a runtime's table of facts applied to a graph."""
