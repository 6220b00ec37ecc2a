"""Feature networks: what they promise, and the errors when they cannot be had."""

from __future__ import annotations

import hashlib

import pytest
import timm
import torch
from safetensors.torch import save_file

import overture.evaluation.networks as networks
from overture.errors import OvertureError, UsageError
from overture.evaluation.networks import load_network
from overture.model_files import weights_hash
from overture.nn.classifier import ClassifierConfig, ClassifierRecord, save_classifier


def images(count: int = 3, channels: int = 3, size: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def domain_file(tmp_path, channels: int = 1, size: int = 20):
    config = ClassifierConfig(channels=channels, image_size=size, num_classes=5, width=4)
    torch.manual_seed(0)
    classifier = config.build().eval()
    path = tmp_path / f"domain{channels}.safetensors"
    save_classifier(classifier, ClassifierRecord(config, 0, 1, None, 0), path)
    return path, classifier


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6).eval()
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path, model


def check_promises(network, batch: torch.Tensor, classes: int) -> None:
    features = network(batch)
    assert features.shape == (len(batch), network.dims)
    assert features.dtype == torch.float32
    outputs = network.outputs(batch)
    torch.testing.assert_close(outputs.features, features)
    assert ("logits" in network.offers) == (outputs.logits is not None) == (classes > 0)
    assert ("spatial" in network.offers) == (outputs.spatial is not None)
    if outputs.logits is not None:
        assert outputs.logits.shape == (len(batch), classes)
        assert outputs.logits.dtype == torch.float32
    one_by_one = torch.cat([network(image) for image in batch.split(1)])
    torch.testing.assert_close(features, one_by_one, rtol=1e-4, atol=1e-5)
    assert not features.requires_grad
    assert len(network.weights_hash) in (16, 64)  # of a model file of ours, of any other file
    assert set(network.weights_hash) <= set("0123456789abcdef")


def test_domain(tmp_path) -> None:
    path, classifier = domain_file(tmp_path)
    network = load_network(f"domain:{path}")
    batch = images(channels=1)
    check_promises(network, batch, 5)
    torch.testing.assert_close(network(batch), classifier.features(batch / 127.5 - 1).detach())
    assert network.label == "FD(domain)"
    assert network.weights_hash == load_network(f"domain:{path}").weights_hash == network.record.weights_hash
    with pytest.raises(OvertureError, match="images are 1x28x28, it was trained on 1x20x20"):
        network(images(channels=1, size=28))
    with pytest.raises(OvertureError, match="images are 3x20x20"):
        network(images())


@pytest.mark.parametrize(
    ("accuracy", "chance", "notes"),
    [
        (0.9, 0.2, ()),
        (0.31, 0.2, ()),
        (0.24, 0.2, ("the judge has learned little: 24% of held-out images right, by chance 20%",)),
        (1.0, 1.0, ("the judge has learned little: 100% of held-out images right, by chance 100%",)),  # one class
        (0.1, 0.0, ()),  # of version 0.1.0, which did not say what chance is
        (None, 0.2, ()),
    ],
)
def test_a_judge_that_has_learned_little_says_so(tmp_path, accuracy, chance, notes) -> None:
    path, classifier = domain_file(tmp_path)
    record = ClassifierRecord(classifier.config, 0, 1, accuracy, 50, chance)
    save_classifier(classifier, record, path)
    assert load_network(f"domain:{path}").notes == notes


def test_domain_in_colour_repeats_grey(tmp_path) -> None:
    path, _ = domain_file(tmp_path, channels=3)
    network = load_network(f"domain:{path}")
    grey = images(channels=1)
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    assert "repeated to 3 channels" in network.preparation


def test_timm(timm_file) -> None:
    path, model = timm_file
    network = load_network(f"timm:test_resnet@{path}")
    check_promises(network, images(), 6)
    assert network.label == "FD(timm:test_resnet)"
    assert network.weights_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    size = network.size[0]
    batch = images(size=size)
    mean, std = (torch.tensor(model.default_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features((batch / 255 - mean) / std), pre_logits=True)
    torch.testing.assert_close(network(batch), expected)
    assert torch.equal(network(images(channels=1)), network(images(channels=1).repeat(1, 3, 1, 1)))


def test_timm_without_a_last_layer_and_from_pth(timm_file, tmp_path) -> None:
    _, model = timm_file
    headless = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("fc.")}
    path = tmp_path / "headless.pth"
    torch.save({"state_dict": headless}, path)
    network = load_network(f"timm:test_resnet@{path}")
    assert network(images()).shape == (3, network.dims)
    assert network.offers == frozenset()
    assert network.outputs(images()).logits is None


def test_timm_errors(timm_file, tmp_path, monkeypatch) -> None:
    path, _ = timm_file
    with pytest.raises(UsageError, match="did you mean 'test_resnet'"):
        load_network(f"timm:test_resnets@{path}")
    with pytest.raises(OvertureError, match="is missing; the file belongs to another model"):
        load_network(f"timm:test_vit@{path}")
    with pytest.raises(OvertureError, match="no such weights file"):
        load_network(f"timm:test_resnet@{tmp_path / 'absent'}")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(OvertureError, match=r"overture\[timm\]"):
        load_network(f"timm:test_resnet@{path}")


def test_nothing_pickled_is_run(tmp_path) -> None:
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    path = tmp_path / "harmful.pth"
    torch.save({"weight": Harmful()}, path)
    for specification in (f"timm:test_resnet@{path}", f"inception:{path}"):
        with pytest.raises(OvertureError, match="not a readable weights file") as caught:
            load_network(specification)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_random() -> None:
    network = load_network("random:12")
    batch = images()
    check_promises(network, batch, 0)
    assert network.weights_hash == load_network("random:12").weights_hash
    assert torch.equal(network(batch), load_network("random:12")(batch))
    assert network.label == "FD(random:12)"


@pytest.mark.parametrize(
    ("specification", "match"),
    [
        ("inseption", "did you mean 'inception'"),
        ("", "unknown feature network ''"),
        ("domain", "write domain:FILE"),
        ("timm:resnet18@", "write timm:MODEL@FILE"),
        ("random:x", "write random:DIMS"),
        ("random:0", "write random:DIMS"),
    ],
)
def test_unknown_or_incomplete_names(specification: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        load_network(specification)


@pytest.mark.parametrize(
    "batch", [images().float(), images()[0], images(channels=3)[:, :2]], ids=["float", "no batch", "two channels"]
)
def test_images_of_another_kind_are_refused(batch: torch.Tensor) -> None:
    with pytest.raises(OvertureError, match=r"need uint8 \[B, 1 or 3, H, W\]"):
        load_network("random:4")(batch)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights for the network of the FID: its real ones cannot be had everywhere."""
    from torch_fidelity import feature_extractor_inceptionv3 as port

    patch = pytest.MonkeyPatch()
    torch.manual_seed(0)
    with patch.context() as patched:
        patched.setattr(port, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        network = port.FeatureExtractorInceptionV3("port", ["2048", "logits_unbiased"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path, network


def test_inception_from_a_file(inception_file) -> None:
    path, port = inception_file
    network = load_network(f"inception:{path}")
    grey = images(count=2, channels=1)
    features, logits = port(grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(network(grey), features)
    outputs = network.outputs(grey)
    torch.testing.assert_close(outputs.features, features)
    torch.testing.assert_close(outputs.logits, logits)
    # The original graph takes the spatial features from the first branch of the block (1 x 1 convolution, batch norm
    # and ReLU), channels last; here they are computed from that branch alone.
    with torch.no_grad():
        seen = []
        hook = port.Mixed_6d.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        port(grey.repeat(1, 3, 1, 1))
        hook.remove()
        branch_BCHW = port.Mixed_6d.branch1x1(seen[0])[:, :7]
    assert branch_BCHW.shape == (2, 7, 17, 17)
    torch.testing.assert_close(outputs.spatial.reshape(2, 17, 17, 7).permute(0, 3, 1, 2), branch_BCHW)
    assert network.weights_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    # These are not the official weights, so their distance must not be called FID.
    assert network.label == "FD(inception)"


def test_only_the_official_weights_give_an_fid(inception_file, monkeypatch) -> None:
    path, _ = inception_file
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(networks, "INCEPTION_SHA256_PREFIX", digest[:8])
    assert load_network(f"inception:{path}").label == "FID"


def test_inception_of_other_shape_is_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(OvertureError, match="do not fit the Inception network") as caught:
        load_network(f"inception:{path}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_no_inception_weights_names_the_ways_out(empty_caches, monkeypatch) -> None:
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(OvertureError) as caught:
        load_network("inception")
    message = str(caught.value)
    assert "\n" not in message
    for way in (
        "inception:FILE",
        "domain:FILE",
        str(empty_caches / "cache" / "overture"),
        "https://",
        "no route to host",
    ):
        assert way in message


def test_a_damaged_cache_is_an_error_and_not_a_number(empty_caches) -> None:
    path = empty_caches / "cache" / "overture" / networks.INCEPTION_FILES[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(OvertureError, match="not the official Inception weights; delete the file"):
        load_network("inception")


def test_the_cache_is_found(empty_caches, inception_file, monkeypatch) -> None:
    path, _ = inception_file
    monkeypatch.setattr(networks, "INCEPTION_SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    cached = empty_caches / "hub" / "checkpoints" / networks.INCEPTION_FILES[1]
    cached.parent.mkdir(parents=True)
    cached.symlink_to(path)
    assert load_network("inception").label == "FID"


def test_pretrained_timm_weights(timm_file, monkeypatch) -> None:
    """timm's own weights: a local model stands in for the download, which fails here otherwise."""
    path, model = timm_file
    create = timm.create_model

    def stand_in(name, pretrained=False, **settings):
        return model if pretrained else create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", stand_in)
    network = load_network("timm:test_resnet")
    torch.testing.assert_close(network(images()), load_network(f"timm:test_resnet@{path}")(images()))
    assert network.weights_hash == weights_hash(model.state_dict())

    def refuse(name, pretrained=False, **settings):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(OvertureError, match=r"no route to the hub.*timm:test_resnet@FILE"):
        load_network("timm:test_resnet")
