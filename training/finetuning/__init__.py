"""Phase 3: targets, the probe in closed form, and gradient steps."""
