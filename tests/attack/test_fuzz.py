"""Damaged files are refused by name, or read as a careful reader reads them."""

from __future__ import annotations

import pytest

from tests.attack.fuzz import attack
from tests.attack.readers import READERS

INPUTS, SEED = 2000, 20261201


@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_refused_or_read_as_an_oracle_reads_it(name):
    _, finds = attack(name, INPUTS * READERS[name].share // 100, SEED)
    assert not finds, "\n".join(finds[:5])
