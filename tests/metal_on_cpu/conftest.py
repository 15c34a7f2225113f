"""Tests that compile kernels are skipped, with the reason, where no compiler is found."""

import pytest

from metal_on_cpu import why_unavailable


@pytest.fixture(scope="session")
def compiler() -> None:
    """For tests that compile kernels."""
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
