"""What a run does about broken numbers, slow ranks and hangs."""
