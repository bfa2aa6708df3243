"""Once, before training: images to latents."""
