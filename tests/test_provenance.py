"""What was recorded is compared when it is used: data, models, states, numbers; damage and exchange are told, with both values."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from overture.config import to_dict
from overture.data.stream import DataConfig, ImageData
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import load_network
from overture.model_files import read_metadata, save_model, weights_hash
from overture.nn.classifier import ClassifierRecord, load_classifier, save_classifier
from overture.nn.transformer import TransformerConfig
from overture.pipeline import load_prior, load_tokenizer
from overture.priors import PriorConfig
from overture.processes import Processes
from overture.progress import SilentProgress
from overture.recipes import recipe_configs
from overture.runs import stages
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.runs.evaluate_run import make_training_reference
from overture.runs.results import Results
from overture.runs.stages import execute, train_network
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig
from overture.training.checkpoint import latest_step, load_state, resume, save_state
from overture.training.metric_log import MetricLog, read_metrics


def told_in_one_line(work: Callable[[], object], told: str) -> str:
    with pytest.raises(OvertureError, match=told) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the data of a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Noise of two classes, a dozen images each."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def run_config(source: Path) -> RunConfig:
    tiny = recipe_configs("quickstart", tiny=True)[1]
    return tiny.changed({"data.source": str(source), "data.held_out_share": 0.25})


def swap(folder: Path) -> None:
    (folder / "cat").rename(folder / "aside")
    (folder / "dog").rename(folder / "cat")
    (folder / "aside").rename(folder / "dog")


def rename(folder: Path) -> None:
    (folder / "cat").rename(folder / "lion")


def remove(folder: Path) -> None:
    (folder / "cat" / "0.png").unlink()


def edit(folder: Path) -> None:
    Image.new("L", (28, 28), 7).save(folder / "cat" / "0.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (swap, r"train: 18 images with fingerprint files-[0-9a-f]+, now 18 with files-[0-9a-f]+"),
        (edit, r"with fingerprint files-[0-9a-f]+, now \d+ with files-[0-9a-f]+"),
        (remove, r"18 images with fingerprint files-[0-9a-f]+, now 17 with files-[0-9a-f]+"),
        (rename, r"2 classes, now 2; the first that differs was 'cat', now 'dog'"),
    ],
)
def test_other_data_between_two_stages_are_refused(
    pets: Path, tmp_path: Path, change: Callable[[Path], None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run would end with old tokens, labels and prior, and new names of classes."""
    begun: list[str] = []

    def begin(*_: object) -> None:
        begun.append("begun")
        raise OvertureError("begun")

    monkeypatch.setattr(stages, "train_network", begin)
    run = RunDirectory(tmp_path / "run")

    def go_on() -> None:
        execute(run_config(pets), run, SilentProgress(), Processes())

    for _ in range(2):
        told_in_one_line(go_on, "begun")
    before = {path.name: path.read_bytes() for path in run.root.iterdir()}
    assert json.loads(before["classes.json"]) == ["cat", "dog"]
    change(pets)
    message = told_in_one_line(go_on, rf"run: the data have changed since this run was begun \(.*{told}")
    assert "bring them back, or give another --out" in message
    assert len(begun) == 2
    assert before == {path.name: path.read_bytes() for path in run.root.iterdir()}


def test_a_run_of_version_0_1_0_has_no_fingerprints_and_goes_on(pets: Path, tmp_path: Path) -> None:
    run, data = RunDirectory(tmp_path / "run"), run_config(pets).data.build()
    run.write_or_check_data(data)
    written = run.data.read_bytes()
    run.data.unlink()
    run.write_or_check_data(data)  # classes.json is all there is to compare
    assert run.data.read_bytes() == written
    run.data.unlink()
    rename(pets)
    told_in_one_line(lambda: run.write_or_check_data(run_config(pets).data.build()), "was 'cat'")


def test_the_same_data_elsewhere_are_the_same(pets: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_or_check_data(run_config(pets).data.build())
    run.write_or_check_data(run_config(pets.rename(tmp_path / "moved")).data.build())


def judge_config(data: ImageData, pets: Path) -> RunConfig:
    return run_config(pets).resolve(data.num_classes)


@pytest.mark.parametrize("fingerprint", ["theirs", "", "other"])
def test_a_judge_of_other_images_is_refused(pets: Path, tmp_path: Path, fingerprint: str) -> None:
    data = run_config(pets).data.build()
    config, run = judge_config(data, pets), RunDirectory(tmp_path / "run")
    print_ = {"theirs": data.train.fingerprint(), "": "", "other": "files-" + "0" * 16}[fingerprint]
    network = stages._network_config(config, "judge")
    record = ClassifierRecord(
        network.network, network.seed, len(data.train), 0.5, 6, 0.5, print_, training=to_dict(network.training)
    )
    save_classifier(network.network.build(), record, run.judge)

    def use() -> None:
        train_network(config, data, "judge", run, SilentProgress(), Processes())

    if fingerprint == "other":
        told_in_one_line(use, r"judge\.safetensors: is of another config \(it was trained on other images\)")
    else:  # the same, or of version 0.1.0, which did not say
        use()


def test_statistics_of_other_images_are_refused(pets: Path, tmp_path: Path) -> None:
    run, judge = RunDirectory(tmp_path / "run"), load_network("random:8")
    config = run_config(pets)

    def make() -> None:
        make_training_reference(config, config.data.build(), judge, run)

    make()
    before = run.reference.read_bytes()
    make()
    assert run.reference.read_bytes() == before
    swap(pets)
    told_in_one_line(make, r"reference\.npz: statistics of other images than there are now; delete it")


# -- what people change by hand -----------------------------------------------------------------------------------------


def test_records_of_a_run_that_were_changed_are_refused(pets: Path, tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path), run_config(pets)
    data = config.data.build()
    resolved = config.resolve(data.num_classes)
    run.write_or_check_config(resolved)
    run.write_or_check_data(data)
    run.write_results(Results(seconds={"tokenizer": 1.5}))
    readers = {
        run.config: [run.read_config, lambda: run.write_or_check_config(resolved)],
        run.results: [run.read_results],
        run.data: [lambda: run.write_or_check_data(data)],
    }
    changes = {
        run.config: ('"seed": 0', '"seed": 1'),
        run.results: ("1.5", "0.5"),
        run.data: ('"images": 18', '"images": 19'),
    }
    for path, uses in readers.items():
        whole = path.read_text()
        for use in uses:
            use()
            changed = whole.replace(*changes[path], 1)
            assert changed != whole
            path.write_text(changed)
            told_in_one_line(use, rf"{path.name}: was changed since it was written; .*checksum")
            path.write_text("{")
            told_in_one_line(use, rf"{path.name}: not valid JSON")
            path.write_text(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": {"tokenizer": "long"}}, {"seconds": [1]}, {"models": {"prior_hash": 3}}, {"failed": {"elbo": None}},
        {"entropy": {"cliff": 3}}, {"entropy": []}, {"likelihood": {"train_vocabulary": {}}}, {"elbo": {"sequence_bits": 1e400}},
        {"generation": {"guided": {"measurements": {"fid": {"name": "FID", "value": [], "protocol": {}}}, "skipped": {}}}},
    ],
    ids=str,
)  # fmt: skip
def test_results_that_say_what_they_cannot_mean_are_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    """Also without a checksum, as after an edit that took it out."""
    run = RunDirectory(tmp_path)
    run.results.write_text(json.dumps(change))
    told_in_one_line(run.read_results, r"results\.json: damaged \(.*; delete it to measure again")


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "loss": 1}', '{"stage": "prior", "loss": 1}', '{"stage": "prior", "step": "1"}',
        '{"stage": "prior", "step": 1, "loss": "low"}', '{"stage": "prior", "step": 1, "loss": null}',
        '{"stage": "prior", "step": 1, "loss": true}', '{"stage": "prior", "step": 1, "loss": [1]}',
        '{"stage": "prior", "step": 1, "loss": 1e400}', '{"stage": "prior", "step": 1, "loss": NaN}', "[1]", "{",
    ],
)  # fmt: skip
def test_lines_of_a_log_that_say_nothing_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "prior", "step": 1, "loss": 0.5}\n' + line + "\n")
    for read in (lambda: read_metrics(path), lambda: MetricLog(path, "prior", 0)):
        told_in_one_line(read, r"metrics\.jsonl: damaged \(line 2.*; repair or delete it")
    path.write_text('{"stage": "prior", "step": 1, "loss": 0.5}\n{"stage": "prior", "ste')  # broken off
    assert len(read_metrics(path)) == 1


# -- models -------------------------------------------------------------------------------------------------------------

SIZE = TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)
TOKENIZER = TokenizerConfig(
    8, 1, 4, num_classes=3, encoder=SIZE, decoder=SIZE,
    segments=(SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),),
)  # fmt: skip
PRIOR = PriorConfig(16, 1, 2, 2.0, 4, num_classes=3)
LOADERS: dict[str, Callable[[Path], object]] = {
    "tokenizer": load_tokenizer,
    "prior": load_prior,
    "classifier": load_classifier,
}


def about(kind: str) -> dict[str, Any]:
    """What a model file says of itself."""
    if kind == "classifier":
        config = recipe_configs("quickstart", tiny=True)[1].judge.network
        return {"record": to_dict(ClassifierRecord(replace(config, num_classes=2), 0, 1, None, 0))}
    layout = {"layout": TOKENIZER.layout.to_dict()} if kind == "prior" else {}
    return {"config": to_dict(PRIOR if kind == "prior" else TOKENIZER), "use_weights": "raw", **layout}


def weights(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    if kind == "classifier":
        return replace(recipe_configs("quickstart", tiny=True)[1].judge.network, num_classes=2).build().state_dict()
    module = PRIOR.build(TOKENIZER.layout) if kind == "prior" else TOKENIZER.build()
    return module.state_dict()


def save(path: Path, kind: str, tensors: Mapping[str, Tensor] | None = None, **changes: Any) -> Path:
    save_model(path, kind, {"raw": tensors or weights(kind)}, {**about(kind), **changes})
    return path


@pytest.mark.parametrize("kind", LOADERS)
def test_a_flipped_bit_in_a_model_is_damage(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", kind)
    LOADERS[kind](path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    rng = np.random.default_rng(0)
    places = [8 + length, len(data) - 1, *rng.integers(8 + length, len(data), 20).tolist()]
    for number, place in enumerate(places):
        broken = tmp_path / f"{number}.safetensors"
        broken.write_bytes(data[:place] + bytes([data[place] ^ 1 << number % 8]) + data[place + 1 :])
        message = told_in_one_line(lambda broken=broken: LOADERS[kind](broken), r"damaged \(its weights have the hash")
        assert read_metadata(path, kind)["weights_hash"] in message


@pytest.mark.parametrize("kind", LOADERS)
def test_a_model_that_is_damaged_after_it_was_loaded_is_looked_at_again(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", kind)
    LOADERS[kind](path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    told_in_one_line(lambda: LOADERS[kind](path), "damaged")


def rewritten(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    """The same weights under other metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = dict(file.metadata())
    change(metadata)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("kind", LOADERS)
def test_metadata_that_were_changed_are_refused(kind: str, tmp_path: Path) -> None:
    """A theta or a patch size decides numbers as weights do."""
    key = "record" if kind == "classifier" else "config"
    for changed in (
        lambda metadata: metadata.update({key: metadata[key].replace("2", "4", 1)}),
        lambda metadata: metadata.update(new="text"),
        lambda metadata: metadata.pop("weights_hash"),
    ):
        path = save(tmp_path / "model.safetensors", kind)
        rewritten(path, changed)
        told_in_one_line(lambda path=path: LOADERS[kind](path), "its metadata were changed since it was written")
    path = save(tmp_path / "model.safetensors", kind)
    rewritten(path, lambda metadata: metadata.update(weights_hash="0" * 16))
    told_in_one_line(lambda: LOADERS[kind](path), "0000000000000000 were saved")
    path = save(tmp_path / "model.safetensors", kind)
    rewritten(path, lambda metadata: metadata.pop("metadata_hash"))  # of version 0.1.0
    LOADERS[kind](path)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(kind: str, value: float, tmp_path: Path) -> None:
    """Whoever saved them, with a hash that is right."""
    tensors = weights(kind)
    name = next(name for name in sorted(tensors) if tensors[name].is_floating_point())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = value
    path = save(tmp_path / "model.safetensors", kind, tensors)
    told_in_one_line(lambda: LOADERS[kind](path), f"not all finite.*{name}|{name}.*not.*finite")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("prior", {"dim": 10**6}),
        ("prior", {"depth": 10**6}),
        ("prior", {"dim": 65_536, "heads": 2, "depth": 50}),
        ("prior", {"num_classes": 2**24}),
        ("tokenizer", {"image_size": 10**6}),
        ("tokenizer", {"channels": 64, "image_size": 8192, "patch_size": 4096}),
        ("tokenizer", {"num_classes": 2**40}),
    ],
    ids=str,
)
def test_sizes_that_metadata_claim_are_compared_before_anything_is_built(
    kind: str, changes: dict[str, int], tmp_path: Path
) -> None:
    """Gigabytes would be asked for before the first tensor is looked at."""
    config = {**about(kind)["config"], **changes}
    path = save(tmp_path / "model.safetensors", kind, config=config)
    built = torch.nn.Module.__setattr__
    with pytest.MonkeyPatch.context() as patch:

        def watched(module: torch.nn.Module, name: str, value: Any) -> None:
            if isinstance(value, torch.nn.Parameter):
                assert value.device.type == "meta" or value.numel() < 10**6
            built(module, name, value)

        patch.setattr(torch.nn.Module, "__setattr__", watched)
        told_in_one_line(lambda: LOADERS[kind](path), r"does not fit its own config|at most|needs 1 to")


def test_layouts_that_metadata_claim_are_bounded(tmp_path: Path) -> None:
    for sizes in ([2**40], [2] * (2**20 + 1), [0], ["2"], [2.5], None, [[2]]):
        layout = {"segments": [{"name": "visual", "sizes": sizes, "separator": False}]}
        path = save(tmp_path / "model.safetensors", "prior", layout=layout)
        told_in_one_line(lambda path=path: load_prior(path), "segment|layout")


def test_metadata_nested_without_end_are_one_line(tmp_path: Path) -> None:
    """Of version 0.1.0, which did not hash them."""

    def nest(metadata: dict[str, str]) -> None:
        del metadata["metadata_hash"]
        metadata["config"] = "[" * 100_000

    path = save(tmp_path / "model.safetensors", "prior")
    rewritten(path, nest)
    told_in_one_line(lambda: load_prior(path), r"model\.safetensors: config: expected an object")


def test_a_model_has_the_rights_that_the_user_gives_to_files(tmp_path: Path) -> None:
    """Safetensors writes for the owner alone; a model is for whoever may read the run."""
    path = save(tmp_path / "model.safetensors", "prior")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    save_state(tmp_path, 1, {"step": 1, "a": torch.zeros(2)})
    for file in (tmp_path / "step-00000001").iterdir():
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.safetensors", "plain", "step-00000001"]


# -- states -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    save_state(tmp_path, 3, {"step": 3, "weights": {"a": torch.arange(50.0)}, "moments": [torch.ones(4), 1.5]})
    return tmp_path / "step-00000003"


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "hashes.json"])
def test_a_flipped_bit_in_a_state_is_damage(name: str, state: Path) -> None:
    data = (state / name).read_bytes()
    load_state(state.parent, 3)
    for place in range(0, len(data), max(1, len(data) // 60)):
        if name == "hashes.json" and data[place] in b" \n":
            continue
        (state / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        told_in_one_line(lambda: load_state(state.parent, 3), "step-00000003")
    (state / name).write_bytes(data)
    load_state(state.parent, 3)


def test_states_of_version_0_1_0_have_no_hashes(state: Path) -> None:
    (state / "hashes.json").unlink()
    assert load_state(state.parent, 3)["step"] == 3


def test_a_state_under_the_name_of_another_step_is_refused(state: Path) -> None:
    class Trainer:
        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    resume(Trainer(), state.parent)
    state.rename(state.with_name("step-00000007"))
    told_in_one_line(lambda: resume(Trainer(), state.parent), r"step-00000007: .*it holds step 3")


def test_a_step_that_is_saved_twice_is_never_missing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed before the new one is in its place, both would be gone after a power cut."""
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    renamed = os.replace

    def watched(*paths: Any) -> None:
        assert state.is_dir()
        renamed(*paths)

    monkeypatch.setattr(os, "replace", watched)
    save_state(state.parent, 3, {"step": 3, "weights": {"a": torch.zeros(50)}})
    assert before == {path.name: path.read_bytes() for path in state.iterdir()}
    save_state(state.parent, 4, {"step": 4})
    assert latest_step(state.parent) == 4
    assert not state.exists()


def test_the_hash_of_weights_is_of_names_and_values() -> None:
    tensors = weights("prior")
    assert weights_hash(tensors) == weights_hash(dict(reversed(tensors.items())))
    assert weights_hash(tensors) != weights_hash({**tensors, "new": torch.zeros(1)})


def test_a_prior_of_another_tokenizer_is_refused(pets: Path, tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path), run_config(pets)
    data = config.data.build()
    config = config.resolve(data.num_classes)
    module = config.prior.build(config.tokenizer.layout)
    metadata = {"config": to_dict(config.prior), "layout": module.layout.to_dict(), "tokenizer_hash": "f" * 16}
    save_model(run.prior_model, "prior", {"raw": module.state_dict()}, metadata)
    save_model(
        run.tokenizer_model,
        "tokenizer",
        {"raw": config.tokenizer.build().state_dict()},
        {"config": to_dict(config.tokenizer)},
    )
    digest = read_metadata(run.tokenizer_model, "tokenizer")["weights_hash"]
    told_in_one_line(
        lambda: stages._prior_stage(config, data, run, SilentProgress(), Processes()),
        rf"trained on another tokenizer's tokens \(f{{16}}, not {digest}\)",
    )


def test_held_out_images_that_are_others_are_refused(pets: Path, tmp_path: Path) -> None:
    """Also those of a source of their own."""
    np.savez(
        tmp_path / "a.npz", images=np.zeros((4, 28, 28), np.uint8), labels=np.arange(4) % 2, class_names=["cat", "dog"]
    )
    np.savez(
        tmp_path / "b.npz", images=np.ones((4, 28, 28), np.uint8), labels=np.arange(4) % 2, class_names=["cat", "dog"]
    )
    run = RunDirectory(tmp_path / "run")
    run.write_or_check_data(DataConfig(str(pets), held_out=str(tmp_path / "a.npz")).build())
    with pytest.raises(UsageError, match="held_out: 4 images with fingerprint"):
        run.write_or_check_data(DataConfig(str(pets), held_out=str(tmp_path / "b.npz")).build())
