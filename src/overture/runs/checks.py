"""Everything about a run that can be refused before any work: after this, no stage fails for its options."""

from __future__ import annotations

import torch

from overture.config import option
from overture.data.order import some_of
from overture.data.reading import ImageReader
from overture.data.stream import DataConfig, ImageData
from overture.errors import UsageError
from overture.evaluation.evaluation import chosen_metrics
from overture.evaluation.networks import DomainNetwork, load_network
from overture.losses.perceptual import DomainConfig
from overture.processes import Processes
from overture.runs.config import RunConfig
from overture.training.start_from import Start, check_prior, fitting_weights

__all__ = ["check_run", "check_weights", "look_at", "needed_networks"]

LOOKED_AT = 64


def check_run(config: RunConfig, processes: Processes = Processes(), until: str = "report") -> None:
    """Refuse a resolved config that cannot be run to its end (or ``until`` a stage): models, schedules, batches, judge."""
    with torch.device("meta"):  # without memory: sizes that do not fit are told by who builds with them
        config.tokenizer.build()
        config.prior.build(config.tokenizer.layout)
        config.tokenizer_training.adversarial.build(config.data.channels, config.data.image_size)
    _check_schedules(config)
    _check_kept_ids(config)
    _check_batches(config, processes)
    _check_networks(config)
    watched = config.watch.tokenizer_every or config.watch.prior_every
    check_evaluation(config, judged=until == "report" or bool(watched))


def _check_schedules(config: RunConfig) -> None:
    training, prior = config.tokenizer_training, config.prior_training
    optimizers = {}
    if training.trains != "nothing":
        optimizers["tokenizer_training.optimizer"] = (training.optimizer, training.steps)
        optimizers["tokenizer_training.discriminator_optimizer"] = (training.discriminator_optimizer, training.steps)
    if training.joint is not None:
        optimizers["tokenizer_training.joint.optimizer"] = (training.joint.optimizer, training.steps)
    if config.prior_source == "tokens":
        optimizers["prior_training.optimizer"] = (prior.optimizer, prior.steps)
    for name, (optimizer, steps) in optimizers.items():
        try:
            optimizer.schedule(steps)
        except UsageError as error:
            raise UsageError(f"{option(name)}: {error}") from error


def _check_kept_ids(config: RunConfig) -> None:
    """A prologue is what a joint prior taught the encoder; training all of the encoder without one lets it fade."""
    training, tokenizer = config.tokenizer_training, config.tokenizer
    unseen = [segment.name for segment in tokenizer.segments if not segment.decoded]
    if training.start_from and training.trains == "everything" and unseen and training.joint is None:
        raise UsageError(
            f"nothing would hold the {unseen[0]} segment in place, which the decoder does not see: set "
            "--tokenizer-training.joint default, or --tokenizer-training.trains decoder"
        )


def _check_batches(config: RunConfig, processes: Processes) -> None:
    batches = {}
    if config.tokenizer_training.trains != "nothing":
        batches["tokenizer_training.batch_size"] = config.tokenizer_training.batch_size
    if config.prior_source == "tokens":
        batches["prior_training.batch_size"] = config.prior_training.batch_size
    for name in needed_networks(config):
        part = "judge" if name == "judge" else "perceptual_network"
        batches[f"{part}.training.batch_size"] = getattr(config, part).training.batch_size
    for name, size in batches.items():
        if size % processes.size:
            raise UsageError(f"{option(name)} is {size}, needs a multiple of the {processes.size} processes")


def _check_networks(config: RunConfig) -> None:
    if not needed_networks(config):
        return
    if config.prior.num_classes < 2:
        raise UsageError(
            "the data have one class, of which a network trained on them learns nothing: set --evaluation.network to "
            "inception, timm:MODEL or random:256, and --tokenizer-training.perceptual to none or lpips"
        )
    if config.judge == config.perceptual_network:
        raise UsageError(
            "--perceptual-network equals --judge: a network must not judge what it trained; change its seed"
        )


def check_evaluation(config: RunConfig, *, judged: bool = True) -> None:
    """Refuse unknown segments and metrics, and, if the run will be ``judged``, a network that cannot be had."""
    evaluation, layout = config.evaluation, config.tokenizer.layout
    for sampling in evaluation.samplings.values():
        sampling.check(layout)
    metrics = chosen_metrics(evaluation.metrics)
    if config.watch.keep_best == "gfd_guided" and "guided" not in evaluation.samplings:
        raise UsageError("watch: keep_best is gfd_guided, but the evaluation has no guidance; take gfd")
    if not judged:
        return
    offers = DomainNetwork.offers if evaluation.network == "domain" else load_network(evaluation.network).offers
    for metric in metrics if evaluation.metrics and "all" not in evaluation.metrics else ():
        if lacking := metric.lacks(offers):
            raise UsageError(
                f"--evaluation.metrics: {metric.name} needs {lacking}, which the network {evaluation.network} has not"
            )


def check_weights(config: RunConfig) -> None:
    """Refuse, by loading them once, weights of others that cannot be had: a tokenizer's perceptual loss, and what the stages
    start from."""
    training, start = config.tokenizer_training, None
    if "perceptual" not in needed_networks(config) and training.trains != "nothing":
        training.perceptual.build()
    if training.start_from:
        with torch.device("meta"):
            tokenizer = config.tokenizer.build()
        start = Start.find(training.start_from, "tokenizer")
        fitting_weights(tokenizer, start, training.trains)
    if config.prior_training.start_from:
        prior = Start.find(config.prior_training.start_from, "prior")
        check_prior(config.prior, config.tokenizer.layout, prior, start)


def needed_networks(config: RunConfig) -> list[str]:
    """The domain networks that this run trains on its own data."""
    judge = ["judge"] if config.evaluation.network == "domain" else []
    perceptual = config.tokenizer_training.perceptual
    own = isinstance(perceptual, DomainConfig) and not perceptual.weights
    own = own and config.tokenizer_training.trains != "nothing"
    return [*judge, *(["perceptual"] if own else [])]


def look_at(data: ImageData, config: DataConfig) -> list[str]:
    """What a user should know of her images before the work, from their names and from some of them.

    Images that are not what the config says (colour where grey was meant) are refused here.
    """
    opened = ((config.source, data.train), (config.held_out or config.source, data.held_out))
    notes = [f"{spec}: {note}" for spec, source in opened for note in source.notes]
    reader = ImageReader(data.train, config.channels, config.background)
    looked = some_of(len(data.train), LOOKED_AT).tolist()
    sizes = [min(reader.read_or_next(index, {})[1].size) for index in looked]
    if reader.transparent:
        notes.append(
            f"{len(reader.transparent)} of {len(looked)} images looked at are transparent in places: "
            f"{config.background} shows there (--data.background COLOUR)"
        )
    small = sum(size < config.image_size for size in sizes)
    if small:
        notes.append(
            f"{small} of {len(looked)} images looked at are smaller than {config.image_size} px and are enlarged"
        )
    return list(dict.fromkeys(notes))
