"""What a run measures while it trains: reconstruction, usage and entropy of the tokenizer; samples of the prior.

Small numbers of images, so the distances stand beside each other and not beside those of the finished run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from overture.analysis.entropy import conditional_entropy
from overture.data.base import subset
from overture.data.order import some_of
from overture.data.stream import ImageData, evaluation_batches
from overture.errors import OvertureError
from overture.evaluation.conditions import Conditions
from overture.evaluation.evaluation import frechet_measurement
from overture.evaluation.networks import FeatureNetwork
from overture.evaluation.reconstruction import measure_reconstruction
from overture.evaluation.statistics import BLOCK, measure_batches, read_statistics
from overture.files import append_line, read_json_lines
from overture.pictures import save_picture
from overture.pipeline import Pipeline, balanced_classes
from overture.processes import Processes
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.forms import Each, check_form, number
from overture.tokenizers.tokenizer import Tokenizer
from overture.training.train_prior import PriorTrainer
from overture.training.train_tokenizer import TokenizerTrainer

__all__ = ["PriorMonitor", "TokenizerMonitor"]

SEED_SHIFT = 7919  # other samples than those of the finished run's results


class _Monitor:
    """Remembers on disk what was measured, so that a run that goes on neither repeats nor forgets.

    All processes measure together; the main one remembers.
    """

    def __init__(self, run: RunDirectory, stage: str, every: int, processes: Processes) -> None:
        self.run, self.stage, self.every, self.processes = run, stage, every, processes
        self.path = run.root / f"watch-{stage}.jsonl"

    def known(self) -> dict[int, dict[str, float]]:
        """Numbers by step."""
        try:
            entries = read_json_lines(self.path, step=int, values=dict)
            for entry in entries:
                check_form(entry["values"], Each(number), f"step {entry['step']}")
        except OvertureError as error:
            raise OvertureError(f"{self.path}: damaged ({error}); delete it and go on") from error
        return {entry["step"]: entry["values"] for entry in entries}

    def due(self, step: int) -> bool:
        """Whether a measurement is due at this step."""
        return bool(self.every and step and step % self.every == 0)

    def measure(self, step: int) -> dict[str, float]:
        """The numbers of this step: measured now, or found in the file. Of those that are found only the main process knows."""
        main = self.processes.is_main
        with self.processes.agree():
            known = self.known() if main else {}
        if self.processes.any(main and step not in known):
            with self.processes.agree():
                known[step] = self.measure_now(step)
                if main:
                    append_line(self.path, {"step": step, "values": known[step]})
        return known.get(step, {})

    def measure_now(self, step: int) -> dict[str, float]:
        """Measure the model as it is."""
        raise NotImplementedError


class TokenizerMonitor(_Monitor):
    """Measures a tokenizer in training on some held-out images."""

    def __init__(
        self, config: RunConfig, data: ImageData, run: RunDirectory, trainer: TokenizerTrainer, judge: FeatureNetwork
    ) -> None:
        super().__init__(run, "tokenizer", config.watch.tokenizer_every, trainer.processes)
        self.config, self.trainer, self.judge = config, trainer, judge
        self.source = subset(data.held_out, some_of(len(data.held_out), config.watch.images))

    def measure_now(self, step: int) -> dict[str, float]:
        """rFD, PSNR, SSIM, share of codes used by segment, and the entropy of the images' tokens."""
        tokenizer, processes = self.trainer.tokenizer.eval(), self.processes
        mine = processes.share_out(len(self.source), BLOCK)
        images = (batch.images for batch in evaluation_batches(self.source, self.config.data, 100, mine))
        report = measure_reconstruction(
            tokenizer, images, self.judge, shown=0, device=processes.device, processes=processes
        )
        assert report.distance is not None
        entropy = conditional_entropy(report.ids_NT.numpy(), layout=tokenizer.layout)
        values = {
            "rfd": report.distance.value,
            "psnr": report.quality.psnr,
            "ssim": report.quality.ssim,
            "entropy_bits": entropy.total_bits,
            "entropy_cliff": float(entropy.cliff),
        }
        for segment in report.usage.segments:
            values[f"used_{segment.name}"] = segment.used
        return {name: value for name, value in values.items() if math.isfinite(value)}  # an exact image has no PSNR


class PriorMonitor(_Monitor):
    """Measures samples of a prior in training, and keeps the best prior."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        trainer: PriorTrainer,
        tokenizer: Tokenizer,
        judge: FeatureNetwork,
        save: Callable[[Path], None],
    ) -> None:
        super().__init__(run, "prior", config.watch.prior_every, trainer.processes)
        self.config, self.trainer, self.tokenizer, self.judge, self.save = config, trainer, tokenizer, judge, save
        self.reference = read_statistics(run.reference, judge)

    def measure_now(self, step: int) -> dict[str, float]:
        """gFD unguided and guided; writes the first samples as a picture."""
        values = {}
        pipe = Pipeline(self.tokenizer, self.trainer.whole_prior().eval())
        for kind in self.config.evaluation.samplings:
            name = "gfd" if kind == "unguided" else "gfd_guided"
            samples = self._samples(pipe, kind, f"{name}-{step:08d}.png")
            side = measure_batches("samples", self.judge, samples, processes=self.processes)
            values[name] = frechet_measurement(name, side, self.reference, self.judge, Conditions()).value
        best = self.config.watch.keep_best
        main = self.processes.is_main
        if best != "none" and self.processes.any(
            main and all(values[best] < earlier[best] for earlier in self.known().values())
        ):
            self.save(self.run.prior / "best" / "model.safetensors")
        return values

    def _samples(self, pipe: Pipeline, kind: str, picture: str) -> Iterator[Tensor]:
        """This process's share of the samples; the same draws at every step."""
        evaluation, num_classes = self.config.evaluation, self.config.prior.num_classes
        classes = balanced_classes(self.config.watch.samples, num_classes)
        mine = self.processes.share_out(len(classes), BLOCK)
        columns = min(num_classes, 10)
        batches = pipe.sample(
            classes[mine.start : mine.stop],
            evaluation.samplings[kind],
            seed=self.config.seed + SEED_SHIFT,
            first=mine.start,
            batch_size=evaluation.batch_size,
        )
        for position, images in enumerate(batches):
            if position == 0 and self.processes.is_main:
                save_picture(images[: 8 * columns], columns, self.run.samples / "training" / picture)
            yield images
