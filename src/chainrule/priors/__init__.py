"""Priors, one paper per file: distributions over codes. Shared parts are in files that start with an underscore."""
