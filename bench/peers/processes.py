"""The peers as processes: started, pinned to one processor, asked, ended."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 600.0  # seconds for an answer


class RefusedError(Exception):
    """A peer has no answer: it does not have what it was asked for."""


def processor() -> int | None:
    """Return the processor that all peers share, or None where nothing can be pinned.

    The last one that this process may use: the first is where interrupts go by default.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1] if len(allowed) > 1 else None


class Peer:
    """A peer that runs. One request at a time; between requests it waits and uses no processor."""

    def __init__(self, command: list[str]) -> None:
        pinned = processor()

        def pin() -> None:
            if pinned is not None:
                os.sched_setaffinity(0, {pinned})

        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=pin,
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer; RefusedError where it is an error, RuntimeError for none."""
        process, line = self._process, ""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            process.stdin.flush()
            if select([process.stdout], [], [], TIMEOUT)[0]:
                line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{process.args!r} ended, or took over {TIMEOUT:g} s, at {do}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
