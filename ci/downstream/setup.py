"""Build the extensions as somebody else's package would: all it knows is the rota installed."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import rota

STRICT = ["-Wall", "-Wextra", "-Werror"]  # the header must not make anybody's build complain

setup(
    ext_modules=[
        *cythonize(["src/dispatch/floor.pyx", "src/dispatch/service.pyx"], include_path=["src"]),
        Extension(
            "dispatch.native",
            ["src/dispatch/native.c"],
            include_dirs=[rota.get_include()],
            extra_compile_args=["-std=c99", *STRICT],
        ),
        Extension(
            "dispatch.native_cpp",
            ["src/dispatch/native_cpp.cpp"],
            depends=["src/dispatch/native.c"],
            include_dirs=[rota.get_include()],
            extra_compile_args=["-std=c++11", *STRICT],
        ),
    ]
)
