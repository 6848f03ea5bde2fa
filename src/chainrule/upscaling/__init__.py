"""Models that double the size of images.  Imports the shared parts of tokenizers."""
