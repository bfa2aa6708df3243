"""What one GPU does with this project: kernels, training steps, and a peer in the same run."""
