"""A folder of anybody's pictures and texts becomes data to train on."""
