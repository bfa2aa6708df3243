"""Digits written, drawn, spoken and moving: shards of documents of all four, and how a reader judges them."""
