"""A trained model as a folder for others: weights, tokenizer, autoencoder, card, and code of its own."""
