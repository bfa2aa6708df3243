"""Figures of merit: each a thin function from what was written and what it should have been."""
