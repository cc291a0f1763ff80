"""How a command line becomes objects: the parser and its errors, YAML, the config that a run keeps."""
