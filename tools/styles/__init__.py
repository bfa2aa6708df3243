"""Digits drawn in styles: captions that may tell more or less, what guidance adds to them, and how long they get."""
