"""What a model writes, asked for by suites and scored from files; training never imports it."""
