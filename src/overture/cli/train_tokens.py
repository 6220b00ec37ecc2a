"""``overture train prior --tokens FILE --held-out FILE``: a prior on the tokens of anyone's tokenizer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from overture.cli.common import print_json
from overture.errors import UsageError

if TYPE_CHECKING:
    from overture.runs.results import Results
    from overture.runs.token_run import TokenRunConfig

SETTABLE = ("seed", "prior.", "prior_training.", "engine.")
"""Options of a recipe's config that mean something without images."""

ELSEWHERE = ("preset", "growth", "start_from", "jobs")
"""Options of runs on images."""


def add_token_files(parser: argparse.ArgumentParser) -> None:
    """``--tokens`` and ``--held-out``."""
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE", help="prior: on this token file, with RECIPE's prior settings"
    )
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="of --tokens: the token file that tells the bits")


def train_on_tokens(options: argparse.Namespace) -> int:
    """Train, measure, say the bits."""
    from overture.loggers import chosen_loggers
    from overture.loggers.attached import following
    from overture.processes import Processes
    from overture.progress import SilentProgress, TerminalProgress, stoppable
    from overture.runs.directory import RunDirectory
    from overture.runs.token_run import execute_tokens

    config = config_of(options)
    log = chosen_loggers(options.log) if options.log is not None else ()
    run = RunDirectory(options.out or Path("runs") / options.tokens.stem)
    with stoppable():
        processes = Processes.join(options.device)
        progress = TerminalProgress(config.name) if processes.is_main else SilentProgress()
        try:
            if processes.is_main:
                with run.locked(), following(log, run.root, progress.say):
                    results = execute_tokens(config, run, progress, processes)
            else:
                results = execute_tokens(config, run, progress, processes)
        finally:
            progress.finish()
        processes.leave()
    if processes.is_main:
        if options.json:
            print_json({"path": str(run.root), **results.to_dict()})
        else:
            print(describe(results))
            print(f"run: {run.root} (overture generate {run.root} --out ids.npy samples it)", file=sys.stderr)
    return 0


def config_of(options: argparse.Namespace) -> TokenRunConfig:
    """The prior's settings of the recipe (default: the quickstart's), with what the options change."""
    from overture.cli.run import parse_overrides, switched
    from overture.config import differences, option
    from overture.recipes import recipe_configs
    from overture.runs.token_run import TokenRunConfig

    if options.until != "prior":
        raise UsageError(
            "--tokens: a prior is trained on them; write overture train prior --tokens FILE --held-out FILE"
        )
    if options.held_out is None:
        raise UsageError("--tokens: give --held-out FILE too, tokens that the prior does not see in training")
    if wrong := [name for name in ELSEWHERE if getattr(options, name, None)]:
        raise UsageError(
            f"{option(wrong[0])} does not go with --tokens: this is one run, without images and without a tokenizer of ours"
        )
    recipe = options.recipe or "quickstart"
    configs = [c for c in recipe_configs(recipe, options.tiny) if options.only in (None, c.name)]
    if not configs:
        raise UsageError(f"recipe {recipe} has no run '{options.only}'")
    given = parse_overrides(options.overrides)
    if wrong := [name for name in given if not name.startswith(SETTABLE)]:
        raise UsageError(
            f"{option(wrong[0])} has no meaning with --tokens; --seed, --prior., --prior-training. and --engine. have"
        )
    changed = [config.changed(switched(config, given)) for config in configs]
    runs = [
        TokenRunConfig(
            train=str(options.tokens), held_out=str(options.held_out), name=options.tokens.stem, recipe=recipe,
            seed=config.seed, prior=config.prior, prior_training=config.prior_training, engine=config.engine,
        )
        for config in changed
    ]  # fmt: skip
    if any(differences(runs[0], other) for other in runs[1:]):
        names = ", ".join(config.name for config in configs)
        raise UsageError(f"recipe {recipe} has several priors; choose one with --only ({names})")
    return runs[0]


def describe(results: Results) -> str:
    """The bits, and where the cliff is."""
    likelihood, entropy = results.likelihood or {}, results.entropy or {}
    lines = [f"{'bits a row':<12}{'vocabulary':>12}{'allowed ids':>12}{'rows':>10}"]
    for part in ("train", "held_out"):
        whole, allowed = likelihood[f"{part}_vocabulary"], likelihood[f"{part}_allowed"]
        told = f"{whole['bits_per_image']:>12.2f}{allowed['bits_per_image']:>12.2f}{whole['images']:>10,}"
        lines.append(f"{part.replace('_', '-'):<12}{told}")
    lines.append(
        f"the training rows hold {entropy['total_bits']:.2f} of log2 N = {entropy['log2_n']:.2f} bits; measured cliff "
        f"{entropy['cliff']}, predicted {entropy['predicted_cliff'] or 'none'}"
    )
    return "\n".join(lines)
