"""The command `sweep`: one run for each value of a setting, and which is the best."""
