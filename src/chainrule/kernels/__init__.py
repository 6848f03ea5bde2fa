"""Compiled code for the CPU, each kernel beside its plain twin.  Imports nothing else of the package."""
