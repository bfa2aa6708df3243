"""The interleaved benchmark: documents of text and images whose truth can be checked, by numpy and Pillow alone."""
