"""Settings that every test runs under."""

from hypothesis import settings

# No deadline: a shared machine stalls. Derandomised: a failure is everybody's failure.
settings.register_profile(
    "default", max_examples=30, deadline=None, derandomize=True, database=None
)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("default")
