"""Tokenizers, one paper per file: images to codes and back. Shared parts are in files that start with an underscore."""
