"""The commands other than the service; `cli` parses their arguments."""
