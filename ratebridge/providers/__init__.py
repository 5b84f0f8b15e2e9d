"""The rate sources: one file each, and the chain that asks them in order."""
