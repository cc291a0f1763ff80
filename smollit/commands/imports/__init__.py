"""The command `import`: configs of TRL, axolotl and LLaMA-Factory as configs of smollit."""
