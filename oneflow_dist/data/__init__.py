"""From tar shards to packed batches: everything that runs in a data worker, on the CPU, in numpy."""
