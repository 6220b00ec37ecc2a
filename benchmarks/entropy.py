"""How long conditional entropy takes at ImageNet scale, and how much memory: ``python benchmarks/entropy.py``.

Every case runs in a process of its own, on one thread and, where the system allows it, on one core. The input is in
memory before the clock starts; the peak beyond it is what the process holds at most minus what it held at the start.
Aim: 5 s and 1 GB beyond the input for 1,281,167 x 256 ids below 16,384, uniform and geometric layouts. The other cases
have no aim: they show what rows that never become unique cost.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from overture.analysis.entropy import conditional_entropy
from overture.schedules import Schedule

ROWS, POSITIONS, K_MAX = 1_281_167, 256, 16384
CASES = {
    "uniform": "independent ids, K = 16384 at every position",
    "geometric": "independent ids, K_t from 2 to 16384",
    "equal": "all rows the same",
    "repeated": "1,000 distinct rows, each repeated",
    "pairs": "every row twice",
    "sparse": "0 or 16383, one id in 500 is not 0: groups split at every position",
}
AIMED = ("uniform", "geometric")


def make_ids(case: str, rows: int, dtype: str) -> np.ndarray:
    """The input of a case, made a few rows at a time so that making it leaves no peak above its own size."""
    random = np.random.default_rng(0)
    sizes = np.array(Schedule.geometric(POSITIONS, 2, K_MAX).sizes if case == "geometric" else (K_MAX,) * POSITIONS)
    distinct = {"equal": 1, "repeated": 1000}.get(case)
    few = random.integers(0, sizes, (distinct, POSITIONS)).astype(dtype) if distinct else None
    ids = np.empty((rows, POSITIONS), dtype=dtype)
    for start in range(0, rows, 4096):
        part = ids[start : start + 4096]
        if few is not None:
            part[:] = few[random.integers(0, len(few), len(part))]
        elif case == "sparse":
            part[:] = (random.random(part.shape, dtype=np.float32) < 1 / 500) * (K_MAX - 1)
        else:
            part[:] = random.random(part.shape, dtype=np.float32) * sizes
    if case == "pairs":
        half = rows // 2
        ids[half : 2 * half] = ids[:half]
    return ids


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(case: str, rows: int, dtype: str) -> None:
    """Run one case in this process and print its line."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ids = make_ids(case, rows, dtype)
    conditional_entropy(ids[:1000])  # imports and first calls are not what is measured
    before = peak_bytes()
    start = time.perf_counter()
    result = conditional_entropy(ids)
    seconds = time.perf_counter() - start
    megabytes = (peak_bytes() - before) / 1e6
    aim = "aim 5 s, 1000 MB" if case in AIMED and rows == ROWS else ""
    found = f"{result.total_bits:6.2f} of {result.log2_n:.2f} bits, cliff {result.cliff:3}"
    print(f"{case:10} {dtype:7} {seconds:6.2f} s {megabytes:6.0f} MB beyond the input   {found}   {aim}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dtype", default="uint16", choices=["uint16", "int32", "int64"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        measure(arguments.cases[0], arguments.rows, arguments.dtype)
        return
    print(f"{arguments.rows:,} x {POSITIONS} ids, one thread")
    for case in arguments.cases:
        print(f"# {CASES[case]}", flush=True)
        command = [sys.executable, str(Path(__file__)), "--here", "--cases", case]
        options = ["--rows", str(arguments.rows), "--dtype", arguments.dtype]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        subprocess.run(command + options, env={**os.environ, **threads}, check=True)


if __name__ == "__main__":
    main()
