"""Judging a trained run: distances, reconstruction, usage, entropy, likelihood, and the pictures of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from overture.analysis.entropy import conditional_entropy
from overture.data.stream import ImageData, evaluation_batches
from overture.data.tokens import TokenFile
from overture.data.transforms import to_float, to_uint8
from overture.errors import UsageError
from overture.evaluation.measure import generation_distance, make_reference, reconstruction_report
from overture.evaluation.networks import FeatureNetwork, load_network
from overture.evaluation.protocol import Protocol
from overture.evaluation.reference import Reference
from overture.pipeline import Pipeline
from overture.priors.guidance import Guidance, parse_temperature
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.pictures import save_picture
from overture.runs.resampling import row_distances, shared_rows
from overture.training.checkpoint import read_metadata
from overture.training.distributed import World
from overture.training.elbo import reconstruction_bits
from overture.training.prior import bits_per_image
from overture.training.progress import Interrupted, Progress, stop_requested

__all__ = ["balanced_classes", "check_evaluation", "evaluate_run", "generated_batches"]


def evaluate_run(config: RunConfig, data: ImageData, run: RunDirectory, progress: Progress, world: World) -> None:
    """Measure everything that is not measured yet, into ``results.json`` and ``samples/``."""
    done = run.read_results()
    pipe = Pipeline.load(run.root, device=world.device)
    judge = judge_network(config, run)
    if "entropy" not in done:
        run.add_results("entropy", measure_entropy(run))
    if "likelihood" not in done:
        run.add_results("likelihood", measure_likelihood(pipe, run))
    reference = training_reference(config, data, judge, run)
    if "reconstruction" not in done:
        run.add_results("reconstruction", measure_reconstruction(config, data, run, pipe, judge, reference))
    if "generation" not in done:
        run.add_results("generation", measure_generation(config, run, pipe, judge, reference, progress))
    if "elbo" not in done:
        run.add_results("elbo", measure_elbo(config, data, run, pipe))
    if len(pipe.prior.layout.segments) > 1 and "shared_rows" not in done:
        run.add_results("shared_rows", measure_shared_rows(config, run, pipe, judge))
    if not all((run.samples / name).exists() for name in ("classes.png", "reconstructions.png")):
        draw_pictures(config, data, run, pipe)


def check_evaluation(config: RunConfig) -> None:
    """Refuse before the training what would fail after it: segments that the layout lacks, a network not to be had."""
    evaluation, layout = config.evaluation, config.tokenizer.layout
    Guidance.parse(evaluation.guidance).scales(layout)
    for temperature in (evaluation.temperature, evaluation.unguided_temperature):
        if temperature is not None:
            parsed = parse_temperature(temperature)
            for name in parsed if isinstance(parsed, dict) else ():
                layout.index(name)
    if config.watch.keep_best == "gfd_guided" and str(Guidance.parse(evaluation.guidance)) == "none":
        raise UsageError("watch: keep_best is gfd_guided, but the evaluation has no guidance; take gfd")
    if evaluation.network != "domain":
        load_network(evaluation.network)


def judge_network(config: RunConfig, run: RunDirectory) -> FeatureNetwork:
    """The feature network that the config names."""
    name = config.evaluation.network
    return load_network(f"domain:{run.networks / 'judge.safetensors'}" if name == "domain" else name)


def training_reference(config: RunConfig, data: ImageData, judge: FeatureNetwork, run: RunDirectory) -> Reference:
    """Statistics of the centre-cropped training images, kept in the run."""
    path = run.networks / "reference.npz"
    if path.exists():
        return Reference.load(path)
    images = (batch.images for batch in evaluation_batches(data.train, config.data, config.evaluation.batch_size))
    reference = make_reference(f"{data.train.name}, training images", judge, images)
    reference.save(path)
    return reference


def measure_entropy(run: RunDirectory) -> dict[str, Any]:
    """The conditional entropy of the training tokens, one row per image (its central crop)."""
    file = TokenFile.open(run.tokens("train"))
    return conditional_entropy(file.ids(crop=file.central_crop), layout=file.layout).to_dict()


def measure_likelihood(pipe: Pipeline, run: RunDirectory) -> dict[str, Any]:
    """The prior's cross-entropy per position in bits, on training and held-out images, over both normalisations."""
    out: dict[str, Any] = {"unit": "bits per image", "weights": "raw", "crop": "central"}
    for part in ("train", "held_out"):
        file = TokenFile.open(run.tokens(part))
        for loss in ("vocabulary", "allowed"):
            bits = bits_per_image(pipe.prior, file, loss=loss).tolist()  # type: ignore[arg-type]
            out[f"{part}_{loss}"] = {"bits_per_position": bits, "bits_per_image": sum(bits), "images": file.rows}
    return out


def protocol(config: RunConfig, run: RunDirectory, kind: str) -> Protocol:
    """What every number of this run has in common."""
    model = run.tokenizer_model if kind == "tokenizer" else run.prior_model
    tokenizer = read_metadata(run.tokenizer_model, "tokenizer").get("use_weights", "ema")
    return Protocol(
        image_size=config.data.image_size,
        crop="center",
        resize="box halving, bicubic",
        dtype="float32",
        checkpoint=read_metadata(model, kind)["weights_hash"],
        weights=tokenizer if kind == "tokenizer" else f"raw (tokenizer {tokenizer})",
        seed=config.seed,
    )


def measure_reconstruction(
    config: RunConfig, data: ImageData, run: RunDirectory, pipe: Pipeline, judge: FeatureNetwork, reference: Reference
) -> dict[str, Any]:
    """Held-out images: PSNR, SSIM, usage, distance to the very same images; and their distance to the training images."""

    def images() -> Iterator[Tensor]:
        return (b.images for b in evaluation_batches(data.held_out, config.data, config.evaluation.batch_size))

    about = protocol(config, run, "tokenizer")
    device = pipe.prior.token_embedding.weight.device
    report = reconstruction_report(pipe.tokenizer, images(), judge, protocol=about, device=device).to_dict()
    about = Protocol(image_size=config.data.image_size, crop="center", resize=about.resize)
    real = generation_distance(judge, images(), reference, about)
    return {**report, "held_out_images_distance": real.to_dict()}


def measure_generation(
    config: RunConfig,
    run: RunDirectory,
    pipe: Pipeline,
    judge: FeatureNetwork,
    reference: Reference,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The distance of generated images to the training images, without guidance and with the config's guidance."""
    evaluation, results = config.evaluation, []
    unguided = evaluation.temperature if evaluation.unguided_temperature is None else evaluation.unguided_temperature
    for text, temperature in dict.fromkeys((("1.0", unguided), (evaluation.guidance, evaluation.temperature))):
        guidance = Guidance.parse(text)
        progress.start("samples", config.evaluation.samples, unit="image")
        about = Protocol(
            **{
                **protocol(config, run, "prior").to_dict(),
                "classes": "balanced",
                "guidance": str(guidance),
                "temperature": temperature if isinstance(temperature, str) else f"{temperature:g}",
            }
        )
        batches = generated_batches(config, pipe, guidance, parse_temperature(temperature), progress)
        results.append(generation_distance(judge, batches, reference, about).to_dict())
        progress.finish()
    return results


def generated_batches(
    config: RunConfig,
    pipe: Pipeline,
    guidance: Guidance,
    temperature: float | Mapping[str, float],
    progress: Progress,
) -> Iterator[Tensor]:
    """``samples`` generated images of balanced classes, uint8; batch b is drawn from (seed, b)."""
    evaluation = config.evaluation
    classes = balanced_classes(evaluation.samples, config.prior.num_classes)
    for number, part in enumerate(classes.split(evaluation.batch_size)):
        if stop_requested():
            raise Interrupted("stopped in stage samples; the same command goes on")
        settings = {**sampling_settings(config), "guidance": guidance, "temperature": temperature}
        images = pipe(part, seed=config.seed * 1_000_003 + number, **settings)
        progress.advance(len(part))
        yield to_uint8(images).cpu()


def sampling_settings(config: RunConfig) -> dict[str, Any]:
    """How the config's guided samples are drawn, as :class:`Pipeline` takes it."""
    evaluation = config.evaluation
    return {
        "guidance": Guidance.parse(evaluation.guidance),
        "temperature": parse_temperature(evaluation.temperature),
        "top_k": evaluation.top_k,
        "top_p": evaluation.top_p,
    }


def balanced_classes(samples: int, num_classes: int) -> Tensor:
    """Every class equally often (to within one)."""
    return torch.arange(samples) % num_classes


@torch.inference_mode()
def measure_elbo(config: RunConfig, data: ImageData, run: RunDirectory, pipe: Pipeline) -> dict[str, Any]:
    """The negative ELBO of held-out images in bits: reconstruction term plus the tokens under the (raw) prior."""
    device = pipe.prior.token_embedding.weight.device
    error, values, images = 0.0, 0, 0
    for batch in evaluation_batches(data.held_out, config.data, config.evaluation.batch_size):
        originals = to_float(batch.images.to(device))
        error += float((pipe.tokenizer.decode(pipe.tokenizer.encode(originals)) - originals).abs().double().sum())
        values += originals.numel()
        images += len(originals)
    tokens = run.read_results()["likelihood"]["held_out_vocabulary"]["bits_per_image"]
    pixels = reconstruction_bits(error / values, values // images)
    return {
        "unit": "bits per held-out image",
        "reconstruction_bits": pixels,
        "sequence_bits": tokens,
        "negative_elbo_bits": pixels + tokens,
        "mean_absolute_error": error / values,
        "images": images,
    }


def measure_shared_rows(config: RunConfig, run: RunDirectory, pipe: Pipeline, judge: FeatureNetwork) -> dict[str, Any]:
    """Rows that share their first segment, next to rows that do not: the numbers, and ``shared_rows.png``."""
    kinds, rows, columns = min(config.prior.num_classes, 10), 4, 8
    classes = torch.arange(kinds).repeat_interleave(rows)
    sampling = sampling_settings(config)
    shared, independent = shared_rows(pipe, classes, columns, seed=config.seed, **sampling)
    run.samples.mkdir(parents=True, exist_ok=True)
    first = slice(None, None, rows)  # one row of each class
    picture = torch.cat([shared[first], independent[first]], dim=1)
    save_picture(picture.flatten(0, 1), 2 * columns, run.samples / "shared_rows.png")
    return {
        "segment": pipe.prior.layout.names[0],
        "network": judge.name,
        "network_hash": judge.weights_hash,
        "guidance": str(sampling["guidance"]),
        "rows": len(classes),
        "columns": columns,
        "shared": row_distances(shared, classes, judge),
        "independent": row_distances(independent, classes, judge),
    }


def draw_pictures(config: RunConfig, data: ImageData, run: RunDirectory, pipe: Pipeline) -> None:
    """``classes.png`` (one row of samples per class) and ``reconstructions.png`` (images over reconstructions)."""
    run.samples.mkdir(parents=True, exist_ok=True)
    shown = min(config.prior.num_classes, 10)
    classes = torch.arange(shown).repeat_interleave(config.evaluation.shown_per_class)
    images = pipe(classes, seed=config.seed, **sampling_settings(config))
    save_picture(to_uint8(images).cpu(), config.evaluation.shown_per_class, run.samples / "classes.png")
    originals = next(iter(evaluation_batches(data.held_out, config.data, 16))).images
    device = pipe.prior.token_embedding.weight.device
    with torch.inference_mode():
        decoded = to_uint8(pipe.tokenizer.decode(pipe.tokenizer.encode(to_float(originals.to(device))))).cpu()
    save_picture(torch.cat([originals, decoded]), len(originals), run.samples / "reconstructions.png")
