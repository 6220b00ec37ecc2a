"""``overture generate RUN --out ids.npy``: the ids that a prior samples, for whoever's decoder they are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from overture.cli.common import at_least, print_json, read_sampling
from overture.errors import UsageError


def sample_ids(options: argparse.Namespace) -> int:
    """Sample; write local ids ``[N, T]`` int64 and, beside them, the labels ``[N]``."""
    import numpy as np
    import torch

    from overture.cli.generate import parse_classes, preset_sampling
    from overture.files import replacing
    from overture.pipeline import load_prior
    from overture.priors.sampler import Sampler
    from overture.processes import Processes
    from overture.progress import progress_bar
    from overture.runs.class_names import class_names

    if not (options.path or options.prior):
        raise UsageError("generate: give a RUN, or --prior")
    if options.tokenizer:
        raise UsageError(f"--tokenizer does not go with --out {options.out}: token ids need none; leave it out")
    at_least(options, count=1, batch_size=1, seed=0)
    sampling = read_sampling(options, preset_sampling(options))
    processes = Processes.join(options.device)
    prior = load_prior(options.prior or options.path, options.weights, processes.device)
    sampling.check(prior.layout)
    names = list(prior.class_names) or class_names(options.path, prior.config.num_classes)
    classes = parse_classes(options.classes, names)
    labels = torch.tensor(classes * options.count)
    sampler = Sampler(prior, sampling, dtype=torch.bfloat16 if options.bf16 else None)
    mine, parts = processes.share_out(len(labels)), []
    with progress_bar("sampling", len(mine), "row", shown=processes.is_main) as bar:
        for start in range(mine.start, mine.stop, options.batch_size):
            rows = labels[start : min(start + options.batch_size, mine.stop)]
            parts.append(prior.layout.from_sequence(sampler(rows, seed=options.seed, first=start)).cpu())
            bar.update(len(rows))
    ids = processes.gather_rows(torch.cat(parts) if parts else torch.empty(0, prior.layout.length, dtype=torch.long))
    if not processes.is_main:
        return 0
    beside = labels_path(options.out)
    for path, array in ((options.out, ids), (beside, labels)):
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, array.numpy(), allow_pickle=False)
    if options.json:
        about = {"rows": len(ids), **sampling.to_dict(), "seed": options.seed, "layout": str(prior.layout)}
        print_json({**about, "out": str(options.out), "labels": str(beside), "classes": classes})
    else:
        print(f"{len(ids)} rows of {prior.layout.length} ids: {options.out}; their classes: {beside}", file=sys.stderr)
    return 0


def labels_path(out: Path) -> Path:
    """``ids.npy`` -> ``ids.labels.npy``."""
    return out.with_name(f"{out.stem}.labels.npy")
