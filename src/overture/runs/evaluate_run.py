"""Judging a trained run: distances and their company, reconstruction, usage, entropy, likelihood, pictures.

Samples are written to ``samples/KIND.npz`` and measured from there, exactly as ``overture evaluate`` measures them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overture.analysis import shared_rows
from overture.analysis.entropy import ConditionalEntropy, conditional_entropy
from overture.data.base import Source, same_fingerprint
from overture.data.npz import array_entries, read_array
from overture.data.order import some_of
from overture.data.stream import ImageData, evaluation_batches
from overture.errors import OvertureError, error_line
from overture.evaluation.conditions import CENTRE_CROP, Conditions
from overture.evaluation.evaluation import chosen_metrics, evaluate, features_needed
from overture.evaluation.networks import FeatureNetwork, load_network
from overture.evaluation.reconstruction import ReconstructionReport, measure_reconstruction
from overture.evaluation.sample_file import partial_file, write_sample_file
from overture.evaluation.statistics import (
    BLOCK,
    ImageStatistics,
    joined_pixels,
    measure_batches,
    open_reference,
    open_samples,
)
from overture.files import remove
from overture.losses.perceptual import Lpips, LpipsConfig, available_lpips
from overture.model_files import read_metadata
from overture.pictures import save_picture
from overture.pipeline import Pipeline, balanced_classes
from overture.priors.likelihood import measure_likelihood
from overture.priors.model import Prior
from overture.priors.sampling import Sampling
from overture.processes import Processes
from overture.progress import Interrupted, Progress, heed_stop, stop_requested
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.results import Results
from overture.training.elbo import reconstruction_bits

__all__ = [
    "centre_crops",
    "evaluate_run",
    "forget_other_models",
    "judge_network",
    "make_training_reference",
    "measure_run_likelihood",
    "run_conditions",
    "sample_conditions",
    "token_entropy",
    "write_samples",
]

KEPT_IMAGES = 10_000
"""Images of the training set beside its statistics, for metrics on features: as many as ADM's references keep."""


def evaluate_run(
    config: RunConfig,
    data: ImageData,
    run: RunDirectory,
    pipe: Pipeline,
    progress: Progress,
    processes: Processes = Processes(),
) -> None:
    """Measure everything that is not measured yet, into ``results.json`` and ``samples/``.

    Processes share what takes long; the main one does the rest, and writes.
    """
    judge = judge_network(config, run, pipe.device)
    make_training_reference(config, data, judge, run, processes)
    together: dict[str, Callable[[], Any]] = {
        "likelihood": lambda: measure_run_likelihood(
            pipe.prior, run, progress, processes, images=config.evaluation.likelihood_images
        ),
        "reconstruction": lambda: reconstruction_results(config, data, run, pipe, judge, progress, processes),
        "generation": lambda: measure_generation(config, data, run, pipe, judge, processes),
    }
    alone: dict[str, Callable[[], Any]] = {
        "entropy": lambda: token_entropy(run).to_dict(),
        "elbo": lambda: negative_elbo(config, run.read_results()),
    }
    if len(pipe.layout.segments) > 1:
        alone["shared_rows"] = lambda: measure_shared_rows(config, run, pipe, judge)
    for name, measure in {**together, **alone}.items():
        if processes.any(processes.is_main and getattr(run.read_results(), name) is None):
            _measure(name, measure if name in together or processes.is_main else dict, run, progress, processes)
    if processes.is_main and not (run.samples / "classes.png").exists():
        draw_samples(config, run, pipe)


def _measure(
    name: str, measure: Callable[[], Any], run: RunDirectory, progress: Progress, processes: Processes
) -> None:
    """Measure a part and keep it. One that fails is recorded with its reason, and never takes the others with it."""
    try:
        with processes.agree():
            value = measure()
    except Exception as error:  # whatever a measurement raises: a network of a stranger, a matrix without a root
        # All are here: what failed for one has failed for all, and a stop that one was asked for is one of all.
        heed_stop("the measurements", processes.any(stop_requested() or isinstance(error, Interrupted)))
        value, reason = None, error_line(error)
        progress.say(f"{name} could not be measured: {reason}")
    if not processes.is_main:
        return
    results = run.read_results()
    if value is None:
        run.write_results(dataclasses.replace(results, failed={**results.failed, name: reason}))
        return
    failed = {part: reason for part, reason in results.failed.items() if part != name}
    run.write_results(dataclasses.replace(results, **{name: value, "failed": failed}))


def forget_other_models(run: RunDirectory) -> None:
    """Drop what was measured of other models than those that lie here now: numbers, samples and pictures."""
    results, models = run.read_results(), run.model_hashes("tokenizer", "prior")
    if results.models and results.models != models:
        for path in run.samples.glob("*.*"):
            remove(path)
        results = Results(seconds=results.seconds)
    run.write_results(dataclasses.replace(results, models=models))


def judge_network(config: RunConfig, run: RunDirectory, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network that the config names."""
    name = config.evaluation.network
    return load_network(f"domain:{run.judge}" if name == "domain" else name, device)


def make_training_reference(
    config: RunConfig,
    data: ImageData,
    judge: FeatureNetwork,
    run: RunDirectory,
    processes: Processes = Processes(),
) -> None:
    """Write statistics of the centre-cropped training images, and some of these images, if they are not there yet."""
    fingerprint = data.train.fingerprint()
    if processes.any(processes.is_main and run.reference.exists()):
        words = array_entries(run.reference)
        known = str(read_array(words["fingerprint"])) if "fingerprint" in words else ""
        if not same_fingerprint(known, fingerprint):
            raise OvertureError(f"{run.reference}: statistics of other images than there are now; delete it")
        return
    images = centre_crops(data.train, config, image_share(data.train, processes))
    side = measure_batches(f"{data.train.name}, training images", judge, images, processes=processes)
    with processes.agree():
        if processes.is_main:
            kept = joined_pixels(centre_crops(data.train, config, some_of(len(data.train), KEPT_IMAGES)))
            side.save(run.reference, {"arr_0": kept, "fingerprint": np.array(fingerprint)})


def centre_crops(source: Source, config: RunConfig, rows: Sequence[int] | NDArray[np.integer]) -> Iterator[Tensor]:
    """These images, uint8 ``[B, C, H, W]``."""
    return (batch.images for batch in evaluation_batches(source, config.data, config.evaluation.batch_size, rows))


def image_share(source: Source, processes: Processes) -> range:
    """The images that are this process's; they begin where a block of a feature network does."""
    return processes.share_out(len(source), BLOCK)


def token_entropy(run: RunDirectory) -> ConditionalEntropy:
    """The conditional entropy of the training tokens, one row per image (its central crop)."""
    file = run.token_file("train")
    return conditional_entropy(file.ids(crop=file.central_crop), layout=file.layout)


def measure_run_likelihood(
    prior: Prior, run: RunDirectory, progress: Progress, processes: Processes = Processes(), *, images: int = 0
) -> dict[str, Any]:
    """The prior's cross-entropy per position in bits, over both normalisations: of ``images`` training images and as many
    held-out ones, or of all (0)."""
    out: dict[str, Any] = {"unit": "bits per image", "weights": "raw", "crop": "central"}
    for part in ("train", "held_out"):
        file = run.token_file(part)
        rows = some_of(file.rows, min(images or file.rows, file.rows))
        progress.start(f"likelihood {part}", len(rows), unit="image")
        share = processes.share_out(len(rows), 100)
        mine = rows[share.start : share.stop]
        found = measure_likelihood(prior, file.parts(100, mine), done=advancing(progress), processes=processes)
        progress.finish()
        for name, bits_L in (("vocabulary", found.vocabulary), ("allowed", found.allowed)):
            bits = bits_L.tolist()
            out[f"{part}_{name}"] = {"bits_per_position": bits, "bits_per_image": sum(bits), "images": found.rows}
    return out


def advancing(progress: Progress) -> Callable[[int], None]:
    """Moves the bar, and heeds the user's stop."""

    def advance(count: int) -> None:
        heed_stop("the measurements")
        progress.advance(count)

    return advance


def run_conditions(config: RunConfig, run: RunDirectory, kind: str) -> Conditions:
    """What every number of this run has in common."""
    model = run.tokenizer_model if kind == "tokenizer" else run.prior_model
    tokenizer = read_metadata(run.tokenizer_model, "tokenizer").get("use_weights", "ema")
    return Conditions(
        image_size=config.data.image_size,
        **CENTRE_CROP,
        dtype="float32",
        checkpoint=read_metadata(model, kind)["weights_hash"],
        weights=tokenizer if kind == "tokenizer" else f"raw (tokenizer {tokenizer})",
        seed=config.seed,
    )


def sample_conditions(config: RunConfig, run: RunDirectory, sampling: Sampling) -> Conditions:
    """How its samples were made."""
    words: dict[str, Any] = sampling.to_dict()
    return dataclasses.replace(run_conditions(config, run, "prior"), resize=None, classes="balanced", **words)


def reconstruction_results(
    config: RunConfig,
    data: ImageData,
    run: RunDirectory,
    pipe: Pipeline,
    judge: FeatureNetwork,
    progress: Progress,
    processes: Processes = Processes(),
) -> dict[str, Any]:
    """Held-out images encoded and decoded: PSNR, SSIM, LPIPS where its weights are at hand, usage, distance; a picture."""
    with processes.agree():
        lpips = _lpips(config, pipe.device, progress)
    if processes.any(lpips is None):  # weights may be on some machines alone
        lpips = None
    report: ReconstructionReport = measure_reconstruction(
        pipe.tokenizer,
        centre_crops(data.held_out, config, image_share(data.held_out, processes)),
        judge,
        run_conditions(config, run, "tokenizer"),
        lpips=lpips,
        device=pipe.device,
        processes=processes,
    )
    if processes.is_main:
        save_picture(report.shown.flatten(0, 1), report.shown.shape[1], run.samples / "reconstructions.png")
    return report.to_dict()


def _lpips(config: RunConfig, device: torch.device, progress: Progress) -> Lpips | None:
    """LPIPS on VGG16, with the weights that the run trains with or with weights that are on this machine already."""
    trained = config.tokenizer_training.perceptual
    if config.data.image_size < Lpips.SMALLEST:
        return None
    try:
        found = trained if isinstance(trained, LpipsConfig) and trained.network == "vgg16" else available_lpips()
        return found.build().to(device) if found is not None else None
    except OvertureError as error:  # the tokenizer may have been trained elsewhere
        progress.say(f"LPIPS is left out: {error}")
        return None


def negative_elbo(config: RunConfig, results: Results) -> dict[str, Any]:
    """The negative ELBO of held-out images in bits: reconstruction term plus the tokens under the (raw) prior."""
    if results.reconstruction is None or results.likelihood is None:
        raise OvertureError("needs the reconstruction and the likelihood")
    l1, images = results.reconstruction["l1"], results.reconstruction["quality"]["images"]
    tokens = results.likelihood["held_out_vocabulary"]["bits_per_image"]
    pixels = reconstruction_bits(l1, config.data.channels * config.data.image_size**2)
    return {
        "unit": "bits per held-out image",
        "reconstruction_bits": pixels,
        "sequence_bits": tokens,
        "negative_elbo_bits": pixels + tokens,
        "mean_absolute_error": l1,
        "images": images,
        "sequence_images": results.likelihood["held_out_vocabulary"]["images"],
    }


def measure_generation(
    config: RunConfig,
    data: ImageData,
    run: RunDirectory,
    pipe: Pipeline,
    judge: FeatureNetwork,
    processes: Processes = Processes(),
) -> dict[str, Any]:
    """Samples without guidance and with it, and real held-out images, all against the training images."""
    keep = features_needed(chosen_metrics(config.evaluation.metrics))
    reference = open_reference(str(run.reference), judge, keep_features=keep, processes=processes)
    out = {}
    for kind, sampling in config.evaluation.samplings.items():
        path = run.samples / f"{kind}.npz"
        if processes.any(not path.exists()):
            raise OvertureError(f"{path}: these samples could not be made")
        if processes.is_main:
            remove(partial_file(path))
        samples = open_samples(str(path), judge, keep_features=keep, processes=processes)
        about = sample_conditions(config, run, sampling)
        out[kind] = evaluate(samples, reference, judge, config.evaluation.metrics, about, strict=False).to_dict()
    # The floor of every metric: what images score that were never generated.
    real = measure_held_out(config, data, run, judge, keep, processes)
    about = Conditions(image_size=config.data.image_size, **CENTRE_CROP)
    out["held_out"] = evaluate(real, reference, judge, config.evaluation.metrics, about, strict=False).to_dict()
    return out


def measure_held_out(
    config: RunConfig, data: ImageData, run: RunDirectory, judge: FeatureNetwork, keep: bool, processes: Processes
) -> ImageStatistics:
    """Real held-out images under the network, with their features if these are to be kept."""
    share, total = image_share(data.held_out, processes), len(data.held_out)
    start, reconstruction = share.start, run.read_results().reconstruction
    whole = reconstruction is not None and reconstruction["quality"]["images"] == total
    if processes.any(processes.is_main and not whole):
        # Corrupt ones are left out, so those that can be read are counted first. They are counted too where nothing tells:
        # nobody measures this a second time once it is recorded, so it may hold no less than it would otherwise.
        with processes.agree():
            readable = sum(map(len, centre_crops(data.held_out, config, share)))
        counts = processes.gather(torch.tensor([readable]))
        start, total = int(counts[: processes.rank].sum()), int(counts.sum())
    return measure_batches(
        f"{data.held_out.name}, held-out images", judge, centre_crops(data.held_out, config, share),
        total=total, start=start, keep_features=keep, processes=processes,
    )  # fmt: skip


def write_samples(
    config: RunConfig,
    run: RunDirectory,
    pipe: Pipeline,
    sampling: Sampling,
    kind: str,
    progress: Progress,
    processes: Processes = Processes(),
) -> None:
    """``samples`` generated images of balanced classes into ``samples/KIND.npz``; goes on where it was stopped.

    All processes sample, the main one writes.
    """
    classes = balanced_classes(config.evaluation.samples, config.prior.num_classes)
    write_sample_file(
        run.samples / f"{kind}.npz",
        pipe,
        classes,
        sampling,
        seed=config.seed,
        batch_size=config.evaluation.batch_size,
        progress=progress,
        processes=processes,
    )


def measure_shared_rows(config: RunConfig, run: RunDirectory, pipe: Pipeline, judge: FeatureNetwork) -> dict[str, Any]:
    """Rows that share their first segment, next to rows that do not: the numbers, and ``shared_rows.png``."""
    found = shared_rows.study(pipe, judge, config.evaluation.guided, seed=config.seed)
    first = found.images[::4]  # one row of each class
    save_picture(first.flatten(0, 1), first.shape[1], run.samples / "shared_rows.png")
    return found.to_dict()


def draw_samples(config: RunConfig, run: RunDirectory, pipe: Pipeline) -> None:
    """``classes.png``: one row of guided samples per class."""
    shown = config.evaluation.shown_per_class
    classes = torch.arange(min(config.prior.num_classes, 10)).repeat_interleave(shown)
    images = pipe(classes, config.evaluation.guided, seed=config.seed)
    save_picture(images, shown, run.samples / "classes.png")
