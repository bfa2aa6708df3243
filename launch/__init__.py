"""Starts runs on nodes: is each fit, the launcher of each, and what is done when one ends."""
