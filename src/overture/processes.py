"""One process or many: with ``training/sharding.py`` the only place that knows ``torch.distributed``.

Launched by ``torchrun``, a process joins a group (nccl on accelerators, gloo on CPUs); launched by hand it is alone.
``Processes()`` is one process alone, also inside a group: what gets it works by itself, whatever the others do.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from overture.errors import Interrupted, OvertureError, UsageError, error_line

__all__ = ["Processes", "choose_device", "end_in_group", "on_threads", "placed", "processes_here", "widest_float"]

P = TypeVar("P")


@dataclass(frozen=True)
class Processes:
    """This process among its peers. Every peer has to make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    _shared: torch.Generator = field(default_factory=torch.Generator, repr=False, compare=False)

    @classmethod
    def join(cls, device: str = "auto") -> Processes:
        """Join the group that ``torchrun`` describes in the environment, or stand alone; choose the device."""
        told = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
        if len(told) == 1:
            raise UsageError(
                f"{told[0]} is set in the environment without its companion; start with torchrun, or unset it"
            )
        place = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            end_with_parent("SIGKILL")  # joining heeds no other signal, and there is nothing to save yet
            _check_launcher()
            # Long: the others wait while the main process measures.
            dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=timedelta(days=1))
            end_with_parent()
        if place.type == "cuda":
            torch.cuda.set_device(place)
        return cls(int(os.environ.get("RANK", "0")), size, place)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for everyone."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Take the group apart, all together, when nothing holds on to it any more.

        Left to the end of the interpreter, its threads may be torn down while they run, which ends in an abort.
        """
        if self.size > 1:
            gc.collect()
            dist.barrier()
            dist.destroy_process_group()

    def share_out(self, count: int, block: int = 1) -> range:
        """The run of ``range(count)`` that is this process's; the runs follow each other and cover it.

        Runs begin at multiples of ``block``, unless there are fewer blocks than processes.
        """
        block = block if count >= block * self.size else 1
        blocks = -(-count // block)
        first, last = (min(count, block * (blocks * rank // self.size)) for rank in (self.rank, self.rank + 1))
        return range(first, last)

    # -- exchanges --------------------------------------------------------------------------------------------------

    def share(self, module: nn.Module) -> None:
        """Give everyone the main process's parameters and buffers."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)

    def replicate(self, module: nn.Module, *, all_used: bool = True) -> nn.Module:
        """The module as it is called in training: its gradients become their means over all processes in the backward pass.

        All begin with the main process's weights. Torch's ``DistributedDataParallel``; in one process the module itself.
        With ``all_used`` every trained parameter has a part in every pass.
        """
        if self.size == 1:
            return module
        with warnings.catch_warnings():  # newer torch calls the first option otherwise, which older torch does not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=not all_used
            )

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all processes, on the device that ``values`` are on."""
        if self.size == 1:
            return values
        # NCCL reduces on the accelerator only. The copy leaves the caller's tensor as it was.
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self.sum(values) / self.size

    def sum_with_gradient(self, values: Tensor) -> Tensor:
        """As :meth:`sum`, on the device of the group; differentiable, twice too."""
        return values if self.size == 1 else _AllSum.apply(values)  # type: ignore[return-value]

    def gather(self, values: Tensor) -> Tensor:
        """The tensors of all processes (of equal shapes), joined along the first axis in the order of their ranks."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values, device=self.device) for _ in range(self.size)]
        dist.all_gather(parts, values.to(self.device).contiguous())
        return torch.cat(parts).to(values.device)

    def gather_rows(self, values: Tensor) -> Tensor:
        """As :meth:`gather`, of tensors that differ in their lengths ``[n, ...]``."""
        if self.size == 1:
            return values
        counts = self.gather(torch.tensor([len(values)])).tolist()
        padded = torch.cat([values, values.new_zeros(max(counts) - len(values), *values.shape[1:])])
        parts = self.gather(padded[None])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether it is up on any process. Asked on the CPU: nobody waits for an accelerator."""
        if self.size == 1:
            return flags
        raised = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(raised)
        return tuple(bool(count) for count in raised.tolist())

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Around work that each does by itself before all exchange what came of it: if it fails for one, it fails for all.

        Otherwise the others would wait in that exchange. Where only others failed, their reason is raised; where one was
        asked to stop, :class:`Interrupted`.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            if _all_know(error):  # from an agreement within this one
                raise
            failed = error
        somewhere, stopped = self.any_of(failed is not None, isinstance(failed, Interrupted))
        if not somewhere:
            return
        said = self._first_said(error_line(failed) if failed else "")
        failed = failed or (Interrupted(said) if stopped else OvertureError(said))
        failed.all_know = True  # type: ignore[attr-defined]
        raise failed

    def _first_said(self, text: str) -> str:
        """What the first process with anything to say has said, and which that is."""
        if self.size == 1:
            return text
        encoded = torch.zeros(4096, dtype=torch.uint8)
        letters = text.encode()[: len(encoded)]
        encoded[: len(letters)] = torch.tensor(list(letters), dtype=torch.uint8)
        said = [bytes(row[row > 0].tolist()).decode(errors="replace") for row in self.gather(encoded[None])]
        rank = next(rank for rank, words in enumerate(said) if words)
        return f"process {rank} of {self.size}: {said[rank]}"

    def seed(self, seed: int, stage: str, step: int) -> None:
        """Make torch's random numbers a function of (seed, stage, step, rank): dropout, fresh weights; and those of
        :meth:`uniform` one of (seed, stage, step).

        Random states then need not be saved for an exact resume.
        """
        torch.manual_seed(_hashed(f"{seed} {stage} {step} {self.rank}"))
        self._shared.manual_seed(_hashed(f"{seed} {stage} {step}"))

    def uniform(self, rows: int) -> Tensor:
        """A number in [0, 1) for each of this process's ``rows`` of a batch, on its device.

        They are drawn for the batch of all processes, who hold equal shares: a row's number does not hang on how many
        processes there are.
        """
        drawn = torch.rand(rows * self.size, generator=self._shared)
        return placed(drawn[self.rank * rows : (self.rank + 1) * rows], self.device)

    # -- turns ------------------------------------------------------------------------------------------------------

    def in_turns(self, work: Callable[[P], None], pieces: Sequence[P]) -> None:
        """``work`` on every piece: processes take turns, and so do the threads of each."""
        on_threads(work, pieces[self.rank :: self.size])


def _all_know(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, was raised by an agreement."""
    return error is not None and (getattr(error, "all_know", False) or _all_know(error.__cause__))


def _hashed(words: str) -> int:
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


class _AllSum(torch.autograd.Function):
    """Every process's sum depends on every process's input, so gradients are summed over processes too.

    That backward is the same operation again, which makes it differentiable any number of times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _AllSum.apply(gradient)  # type: ignore[return-value]


def _check_launcher() -> None:
    """Refuse to join a group whose ``torchrun`` died before we came so far: joining would wait for it for a day."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=60).close()
    except OSError as error:
        raise OvertureError(f"torchrun is gone ({place[0]}:{place[1]}: {error}), so this process ends too") from error


def end_with_parent(name: str = "SIGTERM") -> None:
    """Have this process get a signal when the one that started it is gone (Linux; elsewhere nothing happens).

    Workers of a pool end without it too: their pipe is closed then (:class:`overture.progress.WireProgress`).
    """
    if sys.platform != "linux":
        return
    number, parent = signal.Signals[name], os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, number)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it went before the call
        os.kill(os.getpid(), number)


def on_threads(work: Callable[[P], None], pieces: Iterable[P]) -> None:
    """``work`` on every piece, each on one of this process's threads alone.

    Small products are faster on one thread each than shared by several. What ``work`` writes, it has to guard itself.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for piece in pieces:
            work(piece)
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def as_here(piece: P) -> None:  # these modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            work(piece)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(as_here, pieces):  # raises what a thread raised
                pass
    finally:
        torch.set_num_threads(threads)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``: the copy is queued, and nobody waits for what the device does before.

    The tensor may go at once: CUDA stages what does not lie in pinned memory. MPS does not, so there the copy is awaited.
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def widest_float(device: torch.device) -> torch.dtype:
    """The widest type that a device computes in: MPS knows no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def end_in_group(status: int) -> None:
    """End a process that has joined a group, if this one has, at once and with what it has printed.

    It failed, and the group's threads may wait in an exchange that nobody will finish: at the interpreter's end they are
    torn down while they run, which may abort.
    """
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def processes_here() -> int:
    """How many processes of this group share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is the accelerator if there is one; ``cuda`` is this process's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=f"cuda:{local_rank}" if name == "cuda" else name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used ({str(error).splitlines()[0]})") from error
