"""Programs around training: parse, call the library, print."""
