"""The networks, each a function from a configuration dataclass to a Keras model, and the tokenizer."""
