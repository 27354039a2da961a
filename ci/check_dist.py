"""Check what is in the sdist and in the wheel: usage: check_dist.py FOLDER."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check(condition: bool, message: str) -> None:
    """End with `message` unless the condition holds."""
    if not condition:
        sys.exit(f"check_dist: {message}")


def main(folder: Path) -> None:
    """Check the one sdist and the one wheel in `folder`."""
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        built = set(archive.namelist())
    stems = [path.stem for path in (ROOT / "cython").glob("*.pyx")]
    for stem in stems:
        for name in (f"cython/{stem}.pyx", f"src/rota/kernels/{stem}.pxd"):
            check(name in packed, f"the sdist has no {name}")
        for suffix in ("pxd", "pyi"):
            name = f"rota/kernels/{stem}.{suffix}"
            check(name in built, f"the wheel has no {name}")
        binaries = [name for name in built if name.startswith(f"rota/kernels/{stem}.cpython")]
        check(len(binaries) == 1, f"the wheel has {len(binaries)} binaries of {stem}")
    parts = ["src/rota/include/rota.h"]
    parts += [path.relative_to(ROOT).as_posix() for path in (ROOT / "cython").glob("*.pxi")]
    for name in parts:
        check(name in packed, f"the sdist has no {name}")
    check("rota/include/rota.h" in built, "the wheel has no rota.h")
    check("rota/py.typed" in built, "the wheel has no py.typed")
    extra = [name for name in built if name.endswith((".c", ".pyx", ".pxi", ".html"))]
    check(not extra, f"the wheel has {extra}")
    check(not any(name.endswith(".c") for name in packed), "the sdist has generated C")
    check("LICENSE" in packed, "the sdist has no licence")
    print(f"{sdist.name}: {len(packed)} names; {wheel.name}: {len(built)}; {len(stems)} stems")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
