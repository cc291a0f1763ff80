"""The command `estimate`: the memory and time of a run, from formulas and real probe steps."""
