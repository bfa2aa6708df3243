"""Train OneFlow models: text by insertion, all else by flow matching, in one sequence (arXiv:2510.03506)."""
