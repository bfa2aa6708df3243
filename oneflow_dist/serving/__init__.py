"""Documents for many users at once: `oneflow serve`, its page, and what OpenAI's clients ask for."""
