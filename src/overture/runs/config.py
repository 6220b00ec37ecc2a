"""The complete config of a run, as a recipe returns it and as it is written into the run and every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from overture.data.stream import DataConfig
from overture.errors import UsageError
from overture.nn.classifier import ClassifierConfig
from overture.priors.guidance import Guidance, parse_temperature
from overture.priors.model import PriorConfig
from overture.tokenizers.config import TokenizerConfig
from overture.training.classifier import ClassifierTrainingConfig
from overture.training.prior import PriorTrainingConfig
from overture.training.tokenizer import TokenizerTrainingConfig
from overture.training.tokens import TokensConfig

__all__ = ["DomainNetworkConfig", "EvaluationConfig", "RunConfig", "WatchConfig"]


@dataclass(frozen=True)
class DomainNetworkConfig:
    """A classifier trained on the run's own data, for places without weight downloads."""

    network: ClassifierConfig = ClassifierConfig()
    training: ClassifierTrainingConfig = ClassifierTrainingConfig()
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained run is judged.

    ``network`` names the feature network (``domain`` is the run's own judge, trained with ``judge``; others are as
    :func:`overture.evaluation.networks.load_network` knows them). ``guidance`` is written as on the command line
    (``"1.5"``, ``"cosine 4 power 1.5"``, ``"prologue: 0.7, visual: cosine 3.75 power 0.2"``). Distances are measured
    against the training images, with ``samples`` generated images of balanced classes, once without guidance and once
    with it. ``temperature`` is a number or one per segment (``"prologue: 0.7, visual: 0.9"``); without guidance it is
    ``unguided_temperature`` where that is given.
    """

    network: str = "domain"
    samples: int = 50_000
    batch_size: int = 250
    guidance: str = "1.0"
    temperature: float | str = 1.0
    unguided_temperature: float | str | None = None
    top_k: int = 0
    top_p: float = 1.0
    shown_per_class: int = 8

    def __post_init__(self) -> None:
        Guidance.parse(self.guidance)
        for temperature in (self.temperature, self.unguided_temperature):
            if temperature is not None:
                parse_temperature(temperature)
        for name, least in (("samples", 2), ("batch_size", 1), ("shown_per_class", 1), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"evaluation: {name} is {getattr(self, name)}, needs >= {least}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"evaluation: top_p is {self.top_p}, needs 0 < top_p <= 1")


@dataclass(frozen=True)
class WatchConfig:
    """What is measured during training, with raw weights.

    Every ``tokenizer_every`` steps: distance, PSNR, usage and entropy of ``images`` held-out images. Every
    ``prior_every`` steps: the distance of ``samples`` samples, unguided and with the evaluation's guidance, and a
    picture. 0: never. ``keep_best`` names the number by which the best prior is kept (``prior/best``).
    """

    tokenizer_every: int = 0
    prior_every: int = 0
    images: int = 1000
    samples: int = 1000
    keep_best: Literal["none", "gfd", "gfd_guided"] = "none"

    def __post_init__(self) -> None:
        for name, least in (("tokenizer_every", 0), ("prior_every", 0), ("images", 2), ("samples", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"watch: {name} is {getattr(self, name)}, needs >= {least}")
        if self.keep_best != "none" and not self.prior_every:
            raise UsageError(f"watch: keep_best {self.keep_best} needs prior_every")


@dataclass(frozen=True)
class RunConfig:
    """Everything about one run. What the tokenizer and the prior need to know of the data is filled in by
    :meth:`resolve`, so that another data set needs no other setting.

    ``prior_source`` says where the run's prior comes from: trained on the token file (stage 3), or the ``joint`` prior
    of stage 1 used as it is ("OneStage").
    """

    name: str = "run"
    recipe: str = ""
    seed: int = 0
    data: DataConfig = DataConfig()
    judge: DomainNetworkConfig = DomainNetworkConfig()
    perceptual_network: DomainNetworkConfig = DomainNetworkConfig(seed=1)
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TokenizerTrainingConfig = TokenizerTrainingConfig()
    tokens: TokensConfig = TokensConfig()
    prior: PriorConfig = PriorConfig()
    prior_training: PriorTrainingConfig = PriorTrainingConfig()
    prior_source: Literal["tokens", "joint"] = "tokens"
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()

    def __post_init__(self) -> None:
        joint = self.tokenizer_training.joint
        if self.prior_source == "joint" and joint is None:
            raise UsageError("prior_source is joint, but tokenizer_training.joint is not set; use prior_source tokens")

    def resolve(self, num_classes: int) -> RunConfig:
        """The same config with image size, channels and classes taken from the data throughout."""
        size, channels = self.data.image_size, self.data.channels

        def domain(config: DomainNetworkConfig) -> DomainNetworkConfig:
            network = replace(config.network, image_size=size, channels=channels, num_classes=num_classes)
            return replace(config, network=network)

        prior = replace(self.prior, num_classes=num_classes)
        training, joint = self.tokenizer_training, self.tokenizer_training.joint
        if joint is not None:
            joint = replace(joint, prior=replace(joint.prior, num_classes=num_classes))
            training = replace(training, joint=joint)
            prior = joint.prior if self.prior_source == "joint" else prior
        return replace(
            self,
            judge=domain(self.judge),
            perceptual_network=domain(self.perceptual_network),
            tokenizer=replace(self.tokenizer, image_size=size, channels=channels, num_classes=num_classes),
            tokenizer_training=training,
            prior=prior,
        )
