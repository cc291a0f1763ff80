"""From a command line to objects: the parser and its errors, YAML, the config that a run saves."""
