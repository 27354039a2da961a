"""Forked children do not walk in step with their parent.

A picker made without a seed draws from the operating system's entropy. After a fork, parent
and child would go on with the same picks; so in the child every such picker begins anew.
Those with a seed go on from where the parent was, in both.
"""

import os
from typing import Any
from weakref import WeakSet

# The pickers made without a seed.
unseeded: "WeakSet[Any]" = WeakSet()


def _reseed() -> None:
    for picker in list(unseeded):
        picker._reseed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed)
