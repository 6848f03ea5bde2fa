"""How models and codes are written to disk.

`model` is the folder of a saved model, `weights` its weights, `hub` finds folders by name, and `code_file` is the file
of codes.  Imports core, the text tokenizers and what all rooms may import, and builds tokenizers and priors by their
registered names.
"""
