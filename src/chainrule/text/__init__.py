"""Text tokenizers: a caption becomes a fixed number of tokens."""
