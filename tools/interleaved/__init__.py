"""The interleaved benchmark as a folder that any project can run, and stories to train on."""
