"""Equal up to rounding."""

import numpy as np


def assert_close(actual, expected, atol=0.0, rtol=0.0):
    """Equal to a tolerance, finite, of one shape; `assert_allclose` lets NaN equal NaN."""
    assert np.shape(actual) == np.shape(expected)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, equal_nan=False)
