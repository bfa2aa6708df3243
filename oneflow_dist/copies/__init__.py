"""Copies of a run's state in the memory of nodes, from which it goes on when some of them have gone."""
