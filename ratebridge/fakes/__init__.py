"""Stand-ins for the feed and for the rate sources: for tests, the demo and `mock-server`.

They assert nothing: they record what they were told, and tests judge.
"""
