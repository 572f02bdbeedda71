"""A small part of the torture of the engine; the whole is `python -m tests.torture`."""

import pytest

from tests.torture import tortured

pytestmark = pytest.mark.xdist_group("processes")


@pytest.mark.parametrize(
    "counts",
    [
        {"kills": 0, "flips": 6, "calls": 10},
        pytest.param({"kills": 8, "flips": 30, "calls": 60}, marks=pytest.mark.slow),
    ],
    ids=["tiny", "small"],
)
def test_nothing_ends_in_a_wrong_result_a_hang_or_a_traceback(counts):
    table, findings = tortured(counts, seed=1)
    assert not findings, f"{table}\n{findings[0]}"
