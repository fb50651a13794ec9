"""Graphs of ATen operators: what each operator is, what a graph shows and shares, and what in it is constant."""
