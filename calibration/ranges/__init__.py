"""What the tensors of a network hold on real images, and the ranges that follow from it."""
