"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# A machine that is busy with other things is slow: that is no flaw of what is tested.
settings.register_profile(
    "patient", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")
