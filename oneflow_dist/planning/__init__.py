"""What a run will need at any world size, found out by a dry run of one of its steps."""
