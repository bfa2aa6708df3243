"""The code that a folder brings, where there is nothing but torch and transformers."""
