"""Plans compared: with runs that others published, and of long documents over a context axis."""
