"""What is measured of a run, one module a kind: `measure(subject, probe)` gives rows."""
