"""The three stages themselves, local: load, warm up, one domain verb each."""
