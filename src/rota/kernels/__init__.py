"""The compiled pickers, and the choice between them and `rota.reference`.

`ROTA_IMPLEMENTATION` is read here and nowhere else, once, at import:

    compiled     the kernels; a missing one is an ImportError, never a fallback
    reference    plain Python
    (unset)      the kernels; where they are missing, plain Python with one warning
"""

import os
import warnings
from importlib import import_module
from types import ModuleType

STEMS = (
    "fair_round_robin",
    "hash_picker",
    "interleaved_weighted_round_robin",
    "ketama",
    "least_request",
    "maglev",
    "md5",
    "murmur3",
    "peak_ewma",
    "picker",
    "round_robin",
    "selection",
    "splitmix64",
    "two_choices",
    "weight_groups",
    "weighted_random",
    "weighted_round_robin",
)


def _choose(wanted: str) -> str:
    if wanted not in ("", "compiled", "reference"):
        raise ImportError(
            f"ROTA_IMPLEMENTATION must be 'compiled', 'reference' or unset, got {wanted!r}"
        )
    if wanted == "reference":
        return "reference"
    try:
        for stem in STEMS:
            import_module(f"rota.kernels.{stem}")
    except ImportError as error:
        if wanted == "compiled":
            raise
        warnings.warn(
            f"rota's compiled kernels are missing ({error}); plain Python takes their place, "
            "many times slower. Set ROTA_IMPLEMENTATION=reference to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return "reference"
    return "compiled"


IMPLEMENTATION = _choose(os.environ.get("ROTA_IMPLEMENTATION", ""))


def load(stem: str) -> ModuleType:
    """Return the module of one algorithm, of the implementation in force."""
    package = "rota.kernels" if IMPLEMENTATION == "compiled" else "rota.reference"
    return import_module(f"{package}.{stem}")
