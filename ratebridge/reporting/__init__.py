"""What the service reports of itself: facts, which are counted and become lines of the log."""
