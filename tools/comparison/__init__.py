"""Objectives compared on the same trunk: runs, what they reached, tables and a picture."""
