"""Known SCF failures and the ordered list of remedies for each.

A remedy changes the *route* to the solution, never the method, basis, charge or spin. Each is
tried once, added to those before it, and recorded.
"""

from __future__ import annotations

from collections.abc import Iterator

REMEDIES: tuple[str, ...] = (
    "damping",
    "level_shift",
    "huckel_guess",
    "second_order",
    "smearing",
)


def ladder() -> Iterator[tuple[str, ...]]:
    """Sets of remedies in the order of trial, beginning with none.

    Damping and level shift add up; the others replace them: a second-order solver has its own step
    control, and smearing only makes the density that an unsmeared run begins with.
    """
    yield ()
    yield ("damping",)
    yield ("damping", "level_shift")
    yield ("huckel_guess", "level_shift")
    yield ("second_order",)
    yield ("smearing", "level_shift")
