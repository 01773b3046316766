"""How tests start prewarm and other real programs."""
