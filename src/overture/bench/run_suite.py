"""Runs the members of a suite that are not finished, side by side; one that fails takes no other with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overture.bench.member_file import Finished, declared, member_file, read_finished, write_lines
from overture.bench.member_worker import Keep, MemberTask
from overture.bench.suite import Member, Suite
from overture.errors import OvertureError, UsageError
from overture.processes import choose_device
from overture.progress import stoppable
from overture.recipes.execute import default_jobs, network_tasks
from overture.report.words import joined
from overture.runs.checks import check_run, check_weights
from overture.runs.directory import RunDirectory
from overture.runs.pool import Pool
from overture.runs.worker import Task

__all__ = ["SuiteFolder", "run_suite"]


@dataclass(frozen=True)
class SuiteFolder:
    """A suite's folder: ``members/NAME.json``, ``results.jsonl``, ``runs/GROUP/NAME`` and ``runs/GROUP/networks``."""

    root: Path

    def run(self, member: Member) -> RunDirectory:
        """A member's run, with the networks of its group."""
        group = self.root / "runs" / member.group
        return RunDirectory(group / member.name, group / "networks")

    def task(self, member: Member, suite: Suite, device: str, keep: Keep) -> MemberTask:
        """What a worker does for a member."""
        run, config = self.run(member), member.config
        if member.tokenizer:
            place = self.run(suite.start_of(member)).root
            training = replace(config.tokenizer_training, start_from=str(place))
            config = replace(config, tokenizer_training=training)
        return MemberTask(
            member.name,
            config,
            str(run.root),
            str(run.networks),
            until=suite.until,
            device=device,
            about=declared(member, suite),
            file=str(member_file(self.root, member.name)),
            keep=keep,
        )


def run_suite(
    suite: Suite,
    root: Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 0,
    device: str = "auto",
    keep: Keep = "models",
) -> tuple[dict[str, Finished], dict[str, OvertureError]]:
    """Run what is not finished of the members that ``only`` names (default: all); returns the finished members of the
    whole suite, and the failures by member.

    ``jobs`` members are worked on at once (0: one for each core, or one where there is an accelerator). Members that
    train their own tokenizer come first, then those that start from one that is there.
    """
    if jobs < 0:
        raise UsageError(f"--jobs is {jobs}, needs >= 1 (or 0: as cores allow)")
    if root.is_file():
        raise UsageError(f"--out {root}: is a file; name a folder")
    chosen, finished = suite.chosen(only), read_finished(root, suite)
    missing = [member for member in chosen if member.name not in finished or finished[member.name].lacks]
    failures: dict[str, OvertureError] = {}
    _check_models([finished[member.name] for member in missing if member.name in finished], SuiteFolder(root))
    try:
        if missing:
            failures = _run_missing(missing, suite, SuiteFolder(root), jobs, device, keep)
    finally:  # also of what was stopped
        finished = read_finished(root, suite)
        write_lines(root)
    return finished, failures


def _run_missing(
    missing: list[Member], suite: Suite, folder: SuiteFolder, jobs: int, device: str, keep: Keep
) -> dict[str, OvertureError]:
    """Networks first, then members round by round: in each those that have all that they start from."""
    _check(missing, suite, folder)
    failures: dict[str, OvertureError] = {}
    with stoppable():
        # One thread each, also of the last ones: the sums of a member must not depend on how many run beside it.
        threads = 1 if choose_device(device).type == "cpu" else 0
        pool = Pool(min(jobs or default_jobs(device), len(missing)), threads)
        pool.run_each(_networks(missing, folder, device))  # one that fails is tried again by a member, and told there
        while ready := [member for member in missing if _has_its_start(member, suite, folder)]:
            failures |= pool.run_each([folder.task(member, suite, device, keep) for member in ready])
            missing = [member for member in missing if member not in ready]
    for member in missing:
        failures[member.name] = OvertureError(
            f"starts from the tokenizer of {member.tokenizer}, which is not finished; run that one first"
        )
    return failures


def _has_its_start(member: Member, suite: Suite, folder: SuiteFolder) -> bool:
    return not member.tokenizer or folder.run(suite.start_of(member)).tokenizer_model.exists()


def _check_models(finished: Iterable[Finished], folder: SuiteFolder) -> None:
    """Refuse to take further readings of a member whose models are not there: others would have to be trained."""
    for each in finished:
        run, models = folder.run(each.member), each.record["models"]
        kinds = [kind for kind in ("tokenizer", "prior") if f"{kind}_hash" in models]
        there = run.tokenizer_model.exists() and (run.prior_model.exists() or "prior" not in kinds)
        if not there or run.model_hashes(*kinds) != models:
            raise UsageError(
                f"{each.member.name}: is finished without {joined(each.lacks)}, and the models that it was measured of are not "
                f"in {run.root}; bring them back, leave it out with --only, or delete "
                f"{member_file(folder.root, each.member.name)} to run it anew"
            )


def _check(members: Iterable[Member], suite: Suite, folder: SuiteFolder) -> None:
    """Refuse what can be refused before any work: of every run with its data once."""
    classes: dict[str, int] = {}
    one_of_each = {member.run: member for member in members if not member.prior}
    for member in one_of_each.values():
        if member.group not in classes:
            classes[member.group] = member.config.data.build().num_classes
        resolved = member.config.resolve(classes[member.group])
        try:
            check_run(resolved, until=suite.until)
            if not member.tokenizer and not folder.run(member).tokenizer_model.exists():
                check_weights(resolved)
        except UsageError as error:
            raise UsageError(f"{member.run}: {error}") from error


def _networks(members: Sequence[Member], folder: SuiteFolder, device: str) -> list[Task]:
    """The networks of each group that are not there yet."""
    tasks: dict[tuple[str, str], Task] = {}
    for member in members:
        root = folder.run(member).root.parent
        for task in network_tasks([member.config], root, root / "networks", device):
            tasks.setdefault((member.group, task.network), task)
    return list(tasks.values())
