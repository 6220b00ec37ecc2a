"""What a run looks at while it trains: reconstruction, usage and entropy of the tokenizer; samples of the prior.

Small numbers of images, so the distances stand beside each other and not beside those of the finished run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overture.analysis.entropy import conditional_entropy
from overture.data.stream import ImageData, evaluation_batches
from overture.data.transforms import to_uint8
from overture.errors import OvertureError
from overture.evaluation.measure import generation_distance, reconstruction_report
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.processes import alone
from overture.evaluation.reference import Reference
from overture.pipeline import Pipeline
from overture.priors.guidance import Guidance, parse_temperature
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate import balanced_classes
from overture.runs.json_lines import complete_lines
from overture.runs.pictures import picture_grid
from overture.tokenizers.tokenizer import Tokenizer
from overture.training.prior import PriorTrainer
from overture.training.tokenizer import TokenizerTrainer

__all__ = ["PriorWatch", "TokenizerWatch"]


SEED_SHIFT = 7919


class _Watch:
    """Remembers on disk what was measured, so that a run that goes on neither repeats nor forgets."""

    def __init__(self, run: RunDirectory, stage: str, every: int) -> None:
        self.run, self.stage, self.every = run, stage, every
        self.path = run.root / f"watch-{stage}.jsonl"

    def known(self) -> dict[int, dict[str, float]]:
        """Numbers by step."""
        if not self.path.exists():
            return {}
        try:
            entries = [json.loads(line) for line in complete_lines(self.path)]
            return {entry["step"]: entry["values"] for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise OvertureError(f"{self.path}: damaged ({error!r}); delete it and go on") from error

    def pending(self, step: int) -> bool:
        """Whether a measurement is due at this step and not yet made."""
        return bool(self.every and step and step % self.every == 0 and step not in self.known())

    def keep(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Write the numbers down."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "values": values}) + "\n")
        return values


class TokenizerWatch(_Watch):
    """Looks at a tokenizer in training."""

    def __init__(
        self, config: RunConfig, data: ImageData, run: RunDirectory, trainer: TokenizerTrainer, judge: FeatureNetwork
    ) -> None:
        super().__init__(run, "tokenizer", config.watch.tokenizer_every)
        self.config, self.data, self.trainer, self.judge = config, data, trainer, judge

    def measure(self, step: int) -> dict[str, float]:
        """rFD, PSNR, SSIM, share of codes used by segment, and the entropy of the images' tokens."""
        tokenizer, count = self.trainer.tokenizer.eval(), min(self.config.watch.images, len(self.data.held_out))
        plain = _Plain(tokenizer)
        with alone(), torch.inference_mode():
            report = reconstruction_report(
                plain, _first(self._images(), count), self.judge, device=self.trainer.world.device
            )
        entropy = conditional_entropy(torch.cat(plain.seen).numpy(), layout=tokenizer.layout)
        values = {
            "rfd": report.distance.value,
            "psnr": report.quality.psnr,
            "ssim": report.quality.ssim,
            "entropy_bits": entropy.total_bits,
            "entropy_cliff": float(entropy.cliff),
        }
        for name, segment in report.usage.to_dict()["segments"].items():
            values[f"used_{name}"] = segment["used"]
        return self.keep(step, values)

    def _images(self) -> Iterator[Tensor]:
        return (b.images for b in evaluation_batches(self.data.held_out, self.config.data, 100))


class PriorWatch(_Watch):
    """Looks at a prior in training, and keeps the best."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        trainer: PriorTrainer,
        tokenizer: Tokenizer,
        judge: FeatureNetwork,
        reference: Reference,
        save: Callable[[Path], str],
    ) -> None:
        super().__init__(run, "prior", config.watch.prior_every)
        self.config, self.trainer, self.tokenizer = config, trainer, tokenizer
        self.judge, self.reference, self.save = judge, reference, save

    def measure(self, step: int) -> dict[str, float]:
        """gFD unguided and guided; writes the first samples as a picture."""
        evaluation, values = self.config.evaluation, {}
        pipe = Pipeline(self.tokenizer, self.trainer.prior.eval())
        kinds = {"gfd": ("1.0", evaluation.unguided_temperature or evaluation.temperature)}
        if str(Guidance.parse(evaluation.guidance)) != "none":
            kinds["gfd_guided"] = (evaluation.guidance, evaluation.temperature)
        for name, (guidance, temperature) in kinds.items():
            batches = self._samples(pipe, Guidance.parse(guidance), parse_temperature(temperature), step, name)
            with alone():
                values[name] = generation_distance(self.judge, batches, self.reference).value
        best = self.config.watch.keep_best
        if best != "none" and all(values[best] < earlier[best] for earlier in self.known().values()):
            self.save(self.run.prior / "best" / "model.safetensors")
        return self.keep(step, values)

    def _samples(self, pipe: Pipeline, guidance: Guidance, temperature: Any, step: int, name: str) -> Iterator[Tensor]:
        evaluation, prior = self.config.evaluation, self.config.prior
        classes = balanced_classes(self.config.watch.samples, prior.num_classes)
        for number, part in enumerate(classes.split(evaluation.batch_size)):
            # The same at every step, and others than those of the finished run's results.
            seed = (self.config.seed + SEED_SHIFT) * 1_000_003 + number
            settings = {"guidance": guidance, "temperature": temperature}
            with torch.inference_mode():
                images = pipe(part, seed=seed, top_k=evaluation.top_k, top_p=evaluation.top_p, **settings)
            pixels = to_uint8(images).cpu()
            if number == 0:
                folder = self.run.samples / "training"
                folder.mkdir(parents=True, exist_ok=True)
                shown = pixels[: 8 * min(prior.num_classes, 10)]
                picture_grid(shown, min(prior.num_classes, 10)).save(folder / f"{name}-{step:08d}.png")
            yield pixels


class _Plain:
    """A tokenizer in training as evaluation wants it; keeps the ids that it gave."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.layout, self.decode = tokenizer, tokenizer.layout, tokenizer.decode
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        """Local ids."""
        ids = self.tokenizer.encode(images)
        self.seen.append(ids.cpu())
        return ids


def _first(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    for images in batches:
        yield images[:count]
        count -= len(images)
        if count <= 0:
            return
