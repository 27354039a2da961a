"""Instructions per pick, counted, against those recorded. Run by ci/bench --guard and ci/test.

    python -m bench.guard [--record]

One process runs the operations of counted.py under valgrind's callgrind, which counts what
times hide: the same code gives the same count, on a busy machine too. Two numbers are kept for
each operation, per pick (or element, or call), and growth of either by more than 3 % fails:

    instructions   that ran in the shared objects of rota.kernels
    calls          from these to anything else: the interpreter, libc, libm

What runs elsewhere is not counted but by these calls. It is another build's: of one and the same
binary of rota, CPython 3.11.7 built by pyenv and Debian's 3.11.2 take the same instructions, while
all that is executed, interpreter and all, differs by up to 17 % for one operation, and after
changes by up to 7 % between runs with one interpreter, as addresses differ. What an extra
allocation or look-up would cost there shows as a call here.

Counts depend on what compiles the kernels. So each environment has a record of its own in
instructions.json; in one that has none nothing is judged, and it is said what differs.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
RECORDS = HERE / "instructions.json"
QUANTITIES = ("instructions", "calls")
TOLERANCE = 0.03
FEWEST = 0.01  # calls where there were none: once in a hundred picks is told
HOW = "ci/bench --guard --record"
LONGEST_RUN = 900  # s; takes 40

Environment = dict[str, str]
Counts = dict[str, tuple[float, float]]


class Unable(Exception):
    """Counting is not possible here, for the reason it says."""


@dataclass(frozen=True)
class Finding:
    """A count that is not the one recorded; None: there is none."""

    operation: str
    quantity: str
    recorded: float | None
    now: float | None

    @property
    def verdict(self) -> str:
        """ "grown", "shrunk", "record it" (it is new) or "gone"."""
        if self.recorded is None:
            return "record it"
        if self.now is None:
            return "gone"
        return "grown" if self.now > self.recorded else "shrunk"

    @property
    def fails(self) -> bool:
        """Whether the guard fails for it."""
        return self.verdict != "shrunk"


def compare(recorded: Mapping[str, Sequence[float]], now: Counts) -> list[Finding]:
    """Return all counts that differ by more than the tolerance, or are on one side only."""
    findings = []
    for operation in sorted({*recorded, *now}):
        before, after = recorded.get(operation), now.get(operation)
        for at, quantity in enumerate(QUANTITIES):
            old = None if before is None else before[at]
            new = None if after is None else after[at]
            if old is None or new is None or abs(new - old) > (TOLERANCE * old or FEWEST):
                findings.append(Finding(operation, quantity, old, new))
    return findings


def table(findings: Sequence[Finding]) -> str:
    """Lay the findings out."""
    rows = [("", "", "recorded", "now", "growth", "")]
    for found in findings:
        numbers = ["" if n is None else f"{n:g}" for n in (found.recorded, found.now)]
        growth = f"{found.now / found.recorded - 1:+.1%}" if found.recorded and found.now else ""
        rows.append((found.operation, found.quantity, *numbers, growth, found.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = "<<>>><"
    lines = [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def differences(recorded: Environment, here: Environment) -> dict[str, tuple[str, str]]:
    """Return what differs: (recorded, here)."""
    return {
        what: (recorded.get(what, "-"), here.get(what, "-"))
        for what in sorted({*recorded, *here})
        if recorded.get(what) != here.get(what)
    }


def judge(records: Sequence[dict], here: Environment, now: Counts) -> tuple[bool, str]:
    """Return whether the guard is content, and what it says. Without a record it is."""
    known = record_of(records, here)
    if known is None:
        return True, skipped(records, here)
    findings = compare(known["counts"], now)
    failing = [found for found in findings if found.fails]
    said = [f"instructions: {len(now)} operations counted"]
    if findings:
        said += ["", table(findings), ""]
    if not findings:
        said[0] += f", all within {TOLERANCE:.0%} of what is recorded"
    elif failing:
        said.append(f"Mend what has grown, or, where that is meant, record it: {HOW}")
    else:
        said.append(f"Less than is recorded. Record it, so that it stays: {HOW}")
    return not failing, "\n".join(said)


def record_of(records: Sequence[dict], here: Environment) -> dict | None:
    """Return the record of an environment, if there is one."""
    return next((known for known in records if known["environment"] == here), None)


def skipped(records: Sequence[dict], here: Environment) -> str:
    """Say what differs from the most similar record, and how to make one."""
    said = ["instructions: skipped, nothing is recorded for this environment"]
    different = [differences(known["environment"], here) for known in records]
    for what, (there, this) in min(different, key=len, default={}).items():
        said.append(f"  {what}: recorded with {there}; here {this}")
    return "\n".join([*said, f"To record it, on a tree whose counts are as they should be: {HOW}"])


def environment() -> Environment:
    """Return what the counts depend on, as far as the binaries and Python tell.

    The compiler and Cython are those that the binaries name. Flags are those that come from
    outside: setup.py's own are rota's, to be judged.
    """
    import rota.kernels

    binaries = b"".join(path.read_bytes() for path in kernels(Path(rota.kernels.__file__).parent))
    compilers = set(re.findall(rb"GCC: \([^\0]*|[A-Za-z ]*clang version[^\0]*", binaries))
    cythons = set(re.findall(rb"_cython_(\d+_\d+_\w+?)\b", binaries))
    given = [os.environ.get(name, "") for name in ("CFLAGS", "CPPFLAGS")]
    flags = " ".join([sysconfig.get_config_var("CFLAGS") or "", *given])
    cpuinfo = Path("/proc/cpuinfo")
    # Some loops are compiled for AVX2 too; valgrind knows of no wider vectors.
    vectors = cpuinfo.exists() and re.search(r"\bavx2\b", cpuinfo.read_text())
    return {
        "compiler": " and ".join(sorted(found.decode() for found in compilers)) or "unknown",
        "cython": " and ".join(sorted(found.decode() for found in cythons)) or "unknown",
        "python": sysconfig.get_config_var("SOABI") or platform.python_version(),
        "cpu": platform.machine() + (" with AVX2" if vectors else ""),
        "flags": " ".join(
            flag
            for flag in dict.fromkeys(shlex.split(flags))
            if re.match(r"-[OmfDU]", flag) and "-prefix-map=" not in flag
        ),
    }


def kernels(folder: Path) -> list[Path]:
    """Return the shared objects of the kernels."""
    found = sorted(folder.glob("*.so"))
    if not found:
        raise Unable(f"no compiled kernels in {folder}")
    return found


def counts() -> Counts:
    """Run the operations under callgrind and return what was counted.

    Raises
    ------
    Unable
        No valgrind, no header of its, or no compiler.
    RuntimeError
        The run failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Unable("no valgrind; on Debian or Ubuntu: apt-get install valgrind")
    with TemporaryDirectory() as made:
        folder = Path(made)
        marks = folder / "marks.so"
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        output = ["-O2", "-shared", "-fPIC", "-o", str(marks), str(HERE / "callgrind.c")]
        try:
            subprocess.run([*compiler, *output], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise Unable(f"no C compiler: {compiler[0]}") from None
        except subprocess.CalledProcessError as error:
            raise Unable(f"callgrind.c cannot be compiled:\n{error.stderr}") from None
        # By default a jump of the linkage table is ascribed to this side or the other.
        tool = [valgrind, "--tool=callgrind", "--instr-atstart=no", "--skip-plt=no"]
        command = [
            *(*tool, f"--callgrind-out-file={folder / 'out'}"),
            *(sys.executable, "-m", "bench.counted", str(marks), str(folder)),
        ]
        # Strings are keys of dictionaries that filters are found in.
        fixed = os.environ | {
            "PYTHONHASHSEED": "0",
            "LD_PRELOAD": str(marks),
            "ROTA_IMPLEMENTATION": "compiled",
        }
        ran = subprocess.run(
            command, cwd=HERE.parent, env=fixed, capture_output=True, text=True,
            timeout=LONGEST_RUN, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise RuntimeError(f"counting failed ({ran.returncode}):\n{ran.stdout}{ran.stderr}")
        operations = json.loads((folder / "operations.json").read_text())
        sums = dict(total(path.read_text().splitlines()) for path in folder.glob("out.*"))
    return {
        name: tuple(round(n / units, 4) for n in sums[f"operation {i}"])
        for i, (name, units) in enumerate(operations)
    }


def total(dump: Sequence[str]) -> tuple[str, tuple[int, int]]:
    """Return the name of one of callgrind's dumps, and its instructions and calls out of rota.

    The format is that of valgrind's manual, "Callgrind Format Specification": `ob=` is the object
    of the costs that follow, `cob=` that of the next callee where it is another one; a number
    in brackets stands for the name it came with first; the line after `calls=` is the cost of
    the callee, which is listed as its own, too.
    """
    name, instructions, calls = "", 0, 0
    ours: dict[str, bool] = {}  # by number

    def is_ours(value: str) -> bool:
        number, _, path = value.partition(" ")
        if path:
            ours[number] = "/rota/kernels/" in path
        return ours[number]

    inside = callee_inside = is_callees = False
    for line in dump:
        key, equals, value = line.partition("=")
        if line.startswith("desc: Trigger: Client Request: "):
            name = line.rpartition(": ")[2]
        elif equals and key == "ob":
            inside = callee_inside = is_ours(value)
        elif equals and key == "cob":
            callee_inside = is_ours(value)
        elif equals and key == "calls":
            calls += int(value.split()[0]) if inside and not callee_inside else 0
            callee_inside, is_callees = inside, True
        elif re.match(r"[-+*\d]", line):
            if inside and not is_callees:
                instructions += int(line.split()[1])
            is_callees = False
    return name, (instructions, calls)


def lines(records: Sequence[dict]) -> Iterator[str]:
    """Yield the file of records as it is kept: one line for each operation."""
    yield "["
    for at, known in enumerate(records):
        yield ' {\n  "environment": {'
        about = [f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in known["environment"].items()]
        yield ",\n".join(about)
        yield '  },\n  "counts": {'
        counted = [f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in known["counts"].items()]
        yield ",\n".join(counted)
        yield "  }\n }" + ("," if at < len(records) - 1 else "")
    yield "]"


def record(records: list[dict], here: Environment, now: Counts) -> list[dict]:
    """Return the records with this one in the place of the environment's last one."""
    kept = list(records)
    made = {"environment": here, "counts": dict(sorted(now.items()))}
    known = record_of(records, here)
    if known is None:
        return [*kept, made]
    kept[kept.index(known)] = made
    return kept


def main() -> None:
    """Count and compare, or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="record what is counted now")
    arguments = parser.parse_args()
    records = json.loads(RECORDS.read_text())
    try:
        here = environment()
        if record_of(records, here) is None and not arguments.record:
            print(skipped(records, here))
            return
        now = counts()
    except Unable as reason:
        if os.environ.get("CI") == "true" or arguments.record:
            sys.exit(f"instructions: {reason}")
        print(f"instructions: skipped, {reason}")
        return
    known = record_of(records, here)
    if arguments.record:
        if known and (changed := compare(known["counts"], now)):
            print(table(changed))
        RECORDS.write_text("\n".join(lines(record(records, here, now))) + "\n")
        print(f"instructions: recorded {len(now)} operations")
        return
    content, said = judge(records, here, now)
    print(said)
    if not content:
        sys.exit(1)


if __name__ == "__main__":
    main()
