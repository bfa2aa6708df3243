"""How the objectives generate: what one step of a document is, once the model has said what it sees."""
