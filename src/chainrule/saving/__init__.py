"""Files: saved models and files of codes."""
