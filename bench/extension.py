"""Compiles a Cython source of the benches as the kernels are compiled."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType


def compiled(source: Path, folder: Path) -> Path:
    """Return the path of the module made of a .pyx, in a folder that is there."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    with TemporaryDirectory() as work:
        copy = shutil.copy(source, work)
        extensions = cythonize(
            [Extension(source.stem, [copy], extra_compile_args=["-O3", "-g0"])],
            compiler_directives={
                "language_level": "3",
                "binding": False,
                "always_allow_keywords": False,
            },
            quiet=True,
        )
        command = build_ext(Distribution({"ext_modules": extensions}))
        command.build_lib, command.build_temp = str(folder), work
        command.ensure_finalized()
        command.run()
    return Path(command.get_ext_fullpath(source.stem))


def loaded(path: Path) -> ModuleType:
    """Return the module at a path, named as its file is."""
    spec = spec_from_file_location(path.name.partition(".")[0], path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
