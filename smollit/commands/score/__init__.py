"""The command `score`: what one model can do, or what training changed, with intervals."""
