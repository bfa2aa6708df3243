"""Train OneFlow models: text by insertion, images by flow matching, in one sequence (arXiv:2510.03506)."""
