"""Paragraphs: one to a few sentences of a textbook, each a document of its own, for models of text alone."""
