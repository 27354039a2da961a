"""One algorithm, one stem, in every folder."""

from pathlib import Path

import rota.kernels

ROOT = Path(__file__).parent.parent
STEMS = sorted(path.stem for path in (ROOT / "cython").glob("*.pyx"))


def test_every_stem_has_its_files():
    assert STEMS
    missing = [
        path
        for stem in STEMS
        for path in (
            f"src/rota/kernels/{stem}.pxd",
            f"src/rota/kernels/{stem}.pyi",
            f"src/rota/reference/{stem}.py",
            f"tests/test_{stem}.py",
            f"bench/bench_{stem}.py",
        )
        if not (ROOT / path).is_file()
    ]
    assert missing == []


def test_no_file_without_a_stem():
    for folder, pattern, prefix in (
        ("src/rota/kernels", "*.py[xdi]", ""),
        ("src/rota/reference", "[!_]*.py", ""),
        ("bench", "bench_*.py", "bench_"),
    ):
        stems = {path.stem.removeprefix(prefix) for path in (ROOT / folder).glob(pattern)}
        assert stems == set(STEMS), folder


def test_the_switch_knows_every_stem():
    assert sorted(rota.kernels.STEMS) == STEMS


def test_the_folder_of_kernels_is_no_package():
    """An __init__.py there would hide Cython itself from the build."""
    assert not (ROOT / "cython" / "__init__.py").exists()


def test_the_version_is_said_once_and_the_same():
    assert f'version = "{rota.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {rota.__version__}" in (ROOT / "CHANGELOG.md").read_text()
