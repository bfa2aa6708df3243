"""The programs behind the command `oneflow`, one file each, and what they share."""
