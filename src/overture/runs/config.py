"""The complete config of a run, as a recipe returns it and as it is written into the run and every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from overture.config import changed, no_number, option, options
from overture.data.stream import DataConfig
from overture.errors import UsageError
from overture.nn.classifier import ClassifierConfig
from overture.priors.model import PriorConfig
from overture.priors.sampling import Sampling
from overture.tokenizers.config import TokenizerConfig
from overture.training.train_classifier import ClassifierTrainingConfig
from overture.training.train_prior import EngineConfig, PriorTrainingConfig
from overture.training.train_tokenizer import TokenizerTrainingConfig
from overture.training.write_tokens import TokensConfig

__all__ = ["DomainNetworkConfig", "EvaluationConfig", "RunConfig", "WatchConfig"]

_FROM_DATA = {
    "tokenizer.image_size": ": set --data.image-size",
    "tokenizer.channels": ": set --data.channels",
    "tokenizer.num_classes": "",
    "prior.num_classes": "",
}
"""Options of parts that are filled in from the data, and what to set instead."""


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
    :func:`overture.evaluation.networks.load_network` knows them). Numbers are measured against the training images, with
    ``samples`` generated images of balanced classes, once without guidance and once with it. ``guidance`` and
    ``temperature`` are written as on the command line (``"1.5"``, ``"cosine 4 power 1.5"``, ``"prologue: 0.7, visual:
    cosine 3.75 power 0.2"``); without guidance the temperature is ``unguided_temperature`` where that is given.
    ``metrics`` names what is measured, ``module:name`` for anyone's; none named, or ``all``: ours. The likelihood is that of
    ``likelihood_images`` training images, drawn at random, and as many held-out ones; 0: of all.
    """

    network: str = "domain"
    samples: int = 50_000
    batch_size: int = no_number(250)
    guidance: str = "1.0"
    temperature: float | str = 1.0
    unguided_temperature: float | str | None = None
    top_k: int = 0
    top_p: float = 1.0
    shown_per_class: int = no_number(8)
    metrics: tuple[str, ...] = ()
    likelihood_images: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("likelihood_images", 0), ("batch_size", 1), ("shown_per_class", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"evaluation: {name} is {getattr(self, name)}, needs >= {least}")
        try:
            _ = self.guided, self.unguided
        except UsageError as error:
            raise UsageError(f"evaluation: {error}") from error

    @property
    def guided(self) -> Sampling:
        """With the config's guidance."""
        return Sampling.parse(self.guidance, self.temperature, self.top_k, self.top_p)

    @property
    def unguided(self) -> Sampling:
        """Without guidance."""
        temperature = self.temperature if self.unguided_temperature is None else self.unguided_temperature
        return Sampling.parse("none", temperature, self.top_k, self.top_p)

    @property
    def samplings(self) -> dict[str, Sampling]:
        """Both ways of sampling by name, or the one there is."""
        both = {"unguided": self.unguided, "guided": self.guided}
        return both if both["guided"] != both["unguided"] else {"unguided": self.unguided}


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
    of stage 1 used as it is ("OneStage"). ``tiny`` marks a recipe's tiny form, so that its page can say so.
    """

    name: str = no_number("run")
    recipe: str = no_number("")
    tiny: bool = no_number(False)
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
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()

    def __post_init__(self) -> None:
        joint = self.tokenizer_training.joint
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}, needs >= 0")
        if self.prior_source == "joint" and joint is None:
            raise UsageError(
                "--prior-source is joint, but there is no joint prior; add --tokenizer-training.joint default"
            )
        if self.prior_training.start_from and self.prior_source == "joint":
            raise UsageError("--prior-source joint: its prior learns beside the tokenizer and starts from none")
        if self.prior_training.start_from and not self.tokenizer_training.start_from:
            raise UsageError(
                "--prior-training.start-from is a prior of a trained tokenizer's ids; set "
                "--tokenizer-training.start-from to that one"
            )

    def changed(self, changes: Mapping[str, Any]) -> RunConfig:
        """Some options changed, by dotted name (:func:`overture.config.changed`).

        What the data decide is refused, with the option to set instead. With the steps of a training its warm-up, its
        flat steps and the start of its discriminator change in proportion, unless they are set too.
        """
        for name, instead in _FROM_DATA.items():
            if name in changes:
                raise UsageError(f"{option(name)} comes from the data{instead}")
        changes = dict(changes)
        if "data.image_size" in changes:  # patches have to fit the images that there will be
            changes["tokenizer.image_size"] = changes["data.image_size"]
        new = changed(self, changes)
        return changed(new, {name: value for name, value in self._scaled(new).items() if name not in changes})

    def _scaled(self, new: RunConfig) -> dict[str, int]:
        """What follows when a training gets longer or shorter: warm-up, flat steps, the discriminator's start."""
        scaled = {}
        for part in ("tokenizer_training", "prior_training"):
            ratio = getattr(new, part).steps / getattr(self, part).steps
            for name, _, value in options(getattr(new, part), f"{part}."):
                if ratio != 1 and name.endswith((".warmup", ".flat", ".adversarial.start")):
                    scaled[name] = int(value * ratio)
        return scaled

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
