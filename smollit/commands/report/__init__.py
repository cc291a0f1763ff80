"""The command `report`: the curves of runs as one page, with a verdict."""
