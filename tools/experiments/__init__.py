"""Experiments: what is claimed of the method, trained and measured in several arms and seeds; docs/experiments."""
