"""Files with something wrong in them, through every verb that reads such a file.

Each ends with an exit code of placer's and one line that says why, within 10 s of work and 1 GB;
never with a traceback. MUTANTS (how many) and SEED are read from the environment.
"""

import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple, TextIO

from bench import mutations
from bench.mutant_files import KINDS, Kind, write_originals
from bench.timing import console
from placer import parallel
from placer.cli import main
from placer.optimizers import OPTIMIZERS, optimizer

SECONDS, MOST_BYTES = 10, 2**30
WAITING_S = 60  # on a busy host
BATCH = 100  # mutants a process: what one leaves behind does not add up


class Failure(NamedTuple):
    seed: int
    kind: str
    command: str
    why: str


def run() -> None:
    count, seed = (
        int(os.environ.get(name, value)) for name, value in (("MUTANTS", 10_000), ("SEED", 0))
    )
    failures, codes = survive(count, seed)
    for failure in failures[:20]:
        console.print(
            f"seed {failure.seed}, {failure.kind}: placer {failure.command}\n{failure.why}"
        )
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    console.print(
        f"seeds {seed} to {seed + count - 1}: {len(failures)} failures; commands ended {ended}"
    )
    if failures:
        sys.exit(1)


def survive(count: int, seed: int) -> tuple[list[Failure], Counter[int]]:
    """Mutants of every kind in turn: what failed, and how often commands ended with which code."""
    failures: list[Failure] = []
    codes: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            write_originals()
            for name in OPTIMIZERS:
                optimizer(name)  # what it imports, once for all batches
            first = seed
            while first < seed + count:
                last = min(first + BATCH, seed + count)
                first = _batch(range(first, last), failures, codes)
        finally:
            os.chdir(before)
    return failures, codes


def _batch(seeds: range, failures: list[Failure], codes: Counter[int]) -> int:
    """Run them in a process of its own; the seed after the last that was run."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "w") as told:
            _limit()
            for path in Path("agents").rglob("status.json"):
                path.touch()  # agents that live
            for seed in seeds:
                _one(seed, told)
            _tell(told, "end")
        os._exit(0)
    os.close(write)
    seed, kind, command = seeds.start, "", ""
    ended = False
    with os.fdopen(read) as heard:
        for word, *rest in map(json.loads, heard):
            match word:
                case "run":
                    seed, kind, command = rest
                case "code":
                    codes[rest[0]] += 1
                case "fail":
                    failures.append(Failure(seed, kind, command, rest[0]))
                case "end":
                    ended = True
    _, status = os.waitpid(child, 0)
    if ended:
        return seeds.stop
    code = os.waitstatus_to_exitcode(status)
    slow = {-signal.SIGPROF: f"more than {SECONDS} s of work", -signal.SIGALRM: "it hangs"}
    why = slow.get(code, f"the process ended with {code}")
    failures.append(Failure(seed, kind, command, why))
    return seed + 1


def _one(seed: int, told: TextIO) -> None:
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    mutate: Callable[[bytes, random.Random], bytes] = getattr(mutations, f"of_{kind.syntax}")
    if chance.random() < 0.3:
        mutate = mutations.of_bytes
    data = Path(kind.original).read_bytes()
    mutant = Path(kind.original.replace("agents", "mutants") if kind.name == "status" else "mutant")
    mutant = mutant.with_suffix(f".{kind.syntax}")
    mutant.write_bytes(mutate(data, chance))
    mutant.chmod(0o600)  # or it is said of a file of tokens that everybody can read it
    for command in _commands(kind, mutant, chance):
        _tell(told, "run", seed, kind.name, command)
        _time(SECONDS, WAITING_S)
        code, why = _end(command.split())
        _time(0, 0)
        _tell(told, "code", code)
        if why:
            _tell(told, "fail", why)


def _tell(told: TextIO, *what: str | int) -> None:
    print(json.dumps(what), file=told, flush=True)


def _commands(kind: Kind, mutant: Path, chance: random.Random) -> Iterator[str]:
    for command in kind.commands:
        optimizer = chance.choice(("eplb", "eplb", "joint", "cocluster"))
        yield command.format(file=mutant, optimizer=optimizer)


def _end(args: list[str]) -> tuple[int, str]:
    """The exit code, and what is wrong with how it ended, if anything is."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["placer", *args]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main.run()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        return 1, traceback.format_exc(limit=-3)
    words = {2: ("error",), 3: ("hold",), 4: ("infeasible",)}.get(code, ())
    told = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
    if code not in (0, 2, 3, 4) or len(told) != len(words):
        return code, f"ended with {code} and said: {err.getvalue()[-2000:]}"
    if words and not told[0].startswith(words):
        return code, f"ended with {code} and said: {told[0]}"
    if odd := {sign for sign in out.getvalue() + err.getvalue() if ord(sign) < 32} - {"\n"}:
        return code, f"printed {odd}"
    return code, ""


def _limit() -> None:
    """This process may take MOST_BYTES in all, and ends where it takes too long."""
    parallel.cores = _here
    status = Path("/proc/self/status").read_text()
    kilobytes = {
        line.split(":")[0]: line.split()[1] for line in status.splitlines() if "kB" in line
    }
    mapped, resident = int(kilobytes["VmData"]) * 1024, int(kilobytes["VmRSS"]) * 1024
    most = mapped + MOST_BYTES - resident
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _time(working_s: float, waiting_s: float) -> None:
    """After which this process is ended; 0: it is not."""
    signal.setitimer(signal.ITIMER_PROF, working_s)
    signal.setitimer(signal.ITIMER_REAL, waiting_s)


@contextmanager
def _here() -> Iterator[parallel.Map]:
    """Instead of processes, which take seconds to start."""
    yield map


if __name__ == "__main__":
    run()
