"""A page about runs, made of what lies in their folders; nothing here loads torch, so it opens beside a training."""
