"""How well frames come back from the model's latents, beside trivial predictors."""
