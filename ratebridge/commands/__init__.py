"""The commands beside the service itself; `cli` reads their arguments."""
