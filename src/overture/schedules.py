"""Growth laws of the codebook size along the sequence (variable codebook size quantization, VCQ).

The idea is from "Taming the Entropy Cliff" (arXiv 2605.06207): N training images carry at most log2 N bits of
"which image is it", so codebooks of K entries identify an image after ``t* = ceil(log2 N / log2 K)`` tokens. Letting
K_t grow with the position moves that cliff. The paper does not publish its growth law: the families here are ours.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from overture.errors import UsageError, nearest
from overture.registry import resolve, strangers_code

__all__ = ["FAMILIES", "CodebookConfig", "Schedule"]

FAMILIES = ("uniform", "linear", "power", "geometric", "cosine", "steps")

_LAW_WORDS = {
    "sizes": re.compile(r"\d*\.\.\d*"),
    "exponent": re.compile(r"-?\d+(\.\d+)?"),
    "schedule": re.compile(r"\S+"),
}
"""What a word of a growth law is: the first of these that it looks like."""


@dataclass(frozen=True)
class Schedule:
    """Codebook sizes K_1 .. K_T, one per position.

    Build one with a family (:meth:`uniform`, :meth:`linear`, :meth:`power`, :meth:`geometric`, :meth:`cosine`,
    :meth:`steps`, :meth:`explicit`), change it with :meth:`reversed` or :meth:`shuffled`, or solve one for a budget
    of bits with :meth:`power_for_bits` and :meth:`geometric_for_bits`.
    """

    sizes: tuple[int, ...]
    name: str = "explicit"

    def __post_init__(self) -> None:
        if not self.sizes:
            raise UsageError("a schedule needs at least one position")
        for position, size in enumerate(self.sizes):
            if isinstance(size, bool) or size != int(size) or size < 1:
                raise UsageError(f"schedule {self.name}: codebook size at position {position} is {size!r}, needs >= 1")
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))

    # -- families ---------------------------------------------------------------------------------------------------

    @classmethod
    def uniform(cls, positions: int, k_max: int) -> Schedule:
        """The same codebook everywhere: what every tokenizer before VCQ does."""
        _check(positions, k_max, k_max)
        return cls((k_max,) * positions, "uniform")

    @classmethod
    def linear(cls, positions: int, k_min: int, k_max: int) -> Schedule:
        """K grows by the same number of entries at every position."""
        return _curve("linear", positions, k_min, k_max, lambda u: k_min + (k_max - k_min) * u)

    @classmethod
    def power(cls, positions: int, k_min: int, k_max: int, exponent: float = 2.0) -> Schedule:
        """K grows with the given power of the position: 1 is linear, larger powers stay small for longer."""
        if not exponent > 0:
            raise UsageError(f"schedule power: exponent is {exponent}, needs > 0")
        name = f"power({exponent:.6g})"
        return _curve(name, positions, k_min, k_max, lambda u: k_min + (k_max - k_min) * u**exponent)

    @classmethod
    def geometric(cls, positions: int, k_min: int, k_max: int) -> Schedule:
        """K is multiplied by the same factor at every position: linear in bits."""
        return _curve("geometric", positions, k_min, k_max, lambda u: k_min * (k_max / k_min) ** u)

    @classmethod
    def cosine(cls, positions: int, k_min: int, k_max: int) -> Schedule:
        """K follows half a cosine: flat, steep, flat."""
        return _curve(
            "cosine", positions, k_min, k_max, lambda u: k_min + (k_max - k_min) * (1 - math.cos(math.pi * u)) / 2
        )

    @classmethod
    def steps(cls, positions: int, k_max: int) -> Schedule:
        """2, 4, 8, ... ``k_max`` (a power of two), each held for an equal share of the positions."""
        _check(positions, 2, k_max)
        bits = k_max.bit_length() - 1
        if k_max != 1 << bits:
            raise UsageError(f"schedule steps: k_max is {k_max}, needs a power of two")
        return cls(tuple(2 ** (1 + position * bits // positions) for position in range(positions)), "steps")

    @classmethod
    def explicit(cls, sizes: Iterable[int]) -> Schedule:
        """Any list of sizes."""
        return cls(tuple(sizes), "explicit")

    @classmethod
    def from_name(
        cls, name: str, positions: int, k_min: int = 2, k_max: int = 16384, exponent: float = 2.0
    ) -> Schedule:
        """A growth law by its name, as the command line and configs give it.

        Anyone's ``module:function`` is called with (positions, k_min, k_max) and returns a schedule or the sizes.
        """
        families: dict[str, Callable[[], Schedule]] = {
            "uniform": lambda: cls.uniform(positions, k_max),
            "linear": lambda: cls.linear(positions, k_min, k_max),
            "power": lambda: cls.power(positions, k_min, k_max, exponent),
            "geometric": lambda: cls.geometric(positions, k_min, k_max),
            "cosine": lambda: cls.cosine(positions, k_min, k_max),
            "steps": lambda: cls.steps(positions, k_max),
        }
        if name in families:
            return families[name]()
        if ":" not in name:
            raise UsageError(f"unknown schedule '{name}'{nearest(name, FAMILIES)}, or write module:function")
        law = resolve(name)
        with strangers_code(name):
            made = law(positions, k_min, k_max)
            schedule = made if isinstance(made, Schedule) else cls(tuple(made), name)
        if len(schedule) != positions:
            raise UsageError(f"schedule {name}: gave {len(schedule)} sizes for {positions} positions")
        return schedule

    # -- modifiers and budgets --------------------------------------------------------------------------------------

    def reversed(self) -> Schedule:
        """The same sizes, largest first (an ablation)."""
        return Schedule(self.sizes[::-1], f"{self.name}, reversed")

    def shuffled(self, seed: int) -> Schedule:
        """The same sizes in an order drawn from ``seed`` (an ablation)."""
        sizes = list(self.sizes)
        random.Random(seed).shuffle(sizes)
        return Schedule(tuple(sizes), f"{self.name}, shuffled({seed})")

    @classmethod
    def power_for_bits(cls, positions: int, k_min: int, k_max: int, bits: float) -> Schedule:
        """The power law whose total bits come nearest to ``bits``.

        ``Schedule.power_for_bits(256, 2, 16384, Schedule.uniform(256, 1024).total_bits)`` gives the schedule that
        spends as much as a uniform codebook of 1024 entries, so that the two are compared at equal bits.
        """
        return _solve(lambda p: cls.power(positions, k_min, k_max, p), 1e-3, 1e3, bits)

    @classmethod
    def geometric_for_bits(cls, positions: int, k_min: int, bits: float, largest: int = 2**24) -> Schedule:
        """The geometric law from ``k_min`` whose last size makes its total bits come nearest to ``bits``."""
        return _solve(lambda k: cls.geometric(positions, k_min, max(k_min, round(k))), k_min, largest, bits)

    # -- what it is worth -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def k_max(self) -> int:
        """The largest size: the number of entries of the shared codebook."""
        return max(self.sizes)

    @property
    def bits(self) -> tuple[float, ...]:
        """log2 K_t of every position."""
        return tuple(math.log2(size) for size in self.sizes)

    @property
    def cumulative_bits(self) -> tuple[float, ...]:
        """Bits of the first t tokens, for t = 1 .. T."""
        return tuple(itertools.accumulate(self.bits))

    @property
    def total_bits(self) -> float:
        """Bits of the whole sequence."""
        return math.fsum(self.bits)

    def cliff(self, images: int) -> int | None:
        """t*: the smallest t (counted from 1) whose first t tokens can name each of ``images`` images.

        ``None`` when even the whole sequence cannot.
        """
        return predicted_cliff(self.sizes, images)


@dataclass(frozen=True)
class CodebookConfig:
    """Codebook size at every position: a growth law by name (or ``module:function``), or the ``explicit`` list."""

    schedule: str = "uniform"
    k_min: int = 2
    k_max: int = 16384
    exponent: float = 2.0
    explicit: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if ":" not in self.schedule and self.schedule not in (*FAMILIES, "explicit"):
            valid = nearest(self.schedule, (*FAMILIES, "explicit"))
            raise UsageError(f"codebook: unknown schedule '{self.schedule}'{valid}, or write module:function")

    def grown(self, law: str) -> CodebookConfig:
        """Another growth law in words, ``[LAW] [EXPONENT] [K_MIN..K_MAX]``; what they leave out stays as it is.

        ``"power 2"``, ``"geometric 4..4096"``, ``"..1024"`` (only K_max), ``"my_laws:late 2..512"``. Words that the law
        has no use for are refused: an exponent but for ``power``, a K_min for ``uniform`` and ``steps``.
        """
        form = "[LAW] [EXPONENT] [K_MIN..K_MAX]"
        found: dict[str, str] = {}
        for word in law.split():
            kind = next(kind for kind, shape in _LAW_WORDS.items() if shape.fullmatch(word))
            if kind in found:
                raise UsageError(f"growth '{law}': has '{found[kind]}' and '{word}'; write {form}")
            found[kind] = word
        low, _, high = found.get("sizes", "..").partition("..")
        if not found or found.get("sizes") == "..":
            raise UsageError(f"growth '{law}': write {form}, such as 'power 2 2..16384'")
        made = CodebookConfig(
            schedule=found.get("schedule", self.schedule),
            k_min=int(low or self.k_min),
            k_max=int(high or self.k_max),
            exponent=float(found.get("exponent", self.exponent)),
        )
        if made.schedule == "explicit":
            raise UsageError(f"growth '{law}': explicit sizes are a list; set --tokenizer.segments.N.codebook.explicit")
        if "exponent" in found and made.schedule != "power":
            raise UsageError(f"growth '{law}': {made.schedule} takes no exponent, only power does")
        if low and made.schedule in ("uniform", "steps"):
            raise UsageError(f"growth '{law}': {made.schedule} takes no smallest size; write ..{made.k_max}")
        return made

    def build(self, positions: int) -> Schedule:
        """The schedule over ``positions`` positions."""
        if self.schedule != "explicit":
            return Schedule.from_name(self.schedule, positions, self.k_min, self.k_max, self.exponent)
        if len(self.explicit) != positions:
            raise UsageError(f"explicit codebook sizes: {len(self.explicit)} given, the segment has {positions}")
        return Schedule.explicit(self.explicit)


def predicted_cliff(sizes: Sequence[int], images: int) -> int | None:
    """The smallest t with ``K_1 * .. * K_t >= images``: in integers, so that 2**20 images are no rounding case."""
    if images < 1:
        raise UsageError(f"number of images is {images}, needs >= 1")
    reachable = 1
    for position, size in enumerate(sizes, start=1):
        reachable *= size
        if reachable >= images:
            return position
    return None


def _check(positions: int, k_min: int, k_max: int) -> None:
    if positions < 1:
        raise UsageError(f"schedule: positions is {positions}, needs >= 1")
    if k_min < 1:
        raise UsageError(f"schedule: k_min is {k_min}, needs >= 1")
    if k_max < k_min:
        raise UsageError(f"schedule: k_max is {k_max}, smaller than k_min = {k_min}")


def _curve(name: str, positions: int, k_min: int, k_max: int, law: Callable[[float], float]) -> Schedule:
    """Sample ``law(u)`` at u = t / (T - 1), round half to even, clamp."""
    _check(positions, k_min, k_max)
    last = max(positions - 1, 1)
    sizes = (min(max(round(law(position / last)), k_min), k_max) for position in range(positions))
    return Schedule(tuple(sizes), name)


def _solve(family: Callable[[float], Schedule], low: float, high: float, bits: float) -> Schedule:
    """Bisect (on a logarithmic scale) the one parameter of ``family`` for total bits; refuse what it cannot reach."""
    ends = sorted((family(low).total_bits, family(high).total_bits))
    if not ends[0] - 0.5 <= bits <= ends[1] + 0.5:
        raise UsageError(f"schedule: {bits:.1f} bits are out of reach, this family has {ends[0]:.1f} to {ends[1]:.1f}")
    growing = family(low).total_bits < family(high).total_bits
    for _ in range(200):
        middle = math.sqrt(low * high)
        if (family(middle).total_bits < bits) == growing:
            low = middle
        else:
            high = middle
    return min((family(low), family(high)), key=lambda schedule: abs(schedule.total_bits - bits))
