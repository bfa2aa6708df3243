"""Questions about small pictures of one shape each, for the task `instruct`."""
