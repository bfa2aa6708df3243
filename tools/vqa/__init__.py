"""Questions with answers, for the task `instruct`: easy-VQA's, and how many of any are answered right."""
