"""Build the kernels: each cython/STEM.pyx becomes rota.kernels.STEM."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
# ROTA_DEBUG=1 turns on bounds and initialisation checks and line tracing (CONTRIBUTING.md).
DEBUG = os.environ.get("ROTA_DEBUG") == "1"

# What a kernel is made of besides its own .pyx and the .pxd files.
PARTS = {"picker": ["cython/c_api.pxi", "src/rota/include/rota.h"]}

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "linetrace": DEBUG,
    "binding": False,  # with always_allow_keywords: real METH_NOARGS methods, as in C
    "always_allow_keywords": False,
    "embedsignature": True,
    # Without a GIL, importing a kernel leaves it so: locks of theirs keep threads apart.
    "freethreading_compatible": True,
}


def kernel(path: Path) -> Extension:
    """Describe the extension built from one .pyx file."""
    source = path.relative_to(ROOT).as_posix()
    return Extension(
        f"rota.kernels.{path.stem}",
        [source],
        include_dirs=["src/rota/include"],
        depends=[source, *PARTS.get(path.stem, [])],  # also puts them into the sdist
        define_macros=[
            # Cython 3.3 calls classes by vectorcall, and lets arguments go twice where there
            # is no memory for the names of those given by keyword.
            ("CYTHON_VECTORCALL_TPNEW", "0"),
            *([("CYTHON_TRACE_NOGIL", "1")] if DEBUG else []),
        ],
        # No fused multiply-add: sequences are the same on every machine.
        extra_compile_args=[
            "-ffp-contract=off",
            *(["-O1", "-g"] if DEBUG else ["-O3", "-g0", "-Wall", "-Wextra"]),
        ],
    )


setup(
    ext_modules=cythonize(
        [kernel(path) for path in sorted((ROOT / "cython").glob("*.pyx"))],
        include_path=["src"],  # where `cimport rota.kernels.STEM` is found
        build_dir=None if DEBUG else "build/cythonized",
        compiler_directives=DIRECTIVES,
        annotate=DEBUG,
    )
)
