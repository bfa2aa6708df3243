"""A small chain of the stages of training: text, images, both together, conversations."""
