"""Fakes of the feed and of the rate sources, for tests, the demo and `mock-server`.

They assert nothing: they record what they receive.
"""
