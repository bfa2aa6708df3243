"""The network: a packed bidirectional trunk with insertion heads and an image adapter."""
