"""What the claims are tested against, on the same trunk: next tokens and masked tokens, with pieces by flow."""
