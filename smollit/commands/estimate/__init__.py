"""The command `estimate`: what a run needs, by formulas and one real probe step."""
