"""The quickstart: handwritten digits written as shards, and what a model makes of them judged and drawn."""
