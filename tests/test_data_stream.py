import itertools
import os
import pickle
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from overture.data.base import ArraySource, CorruptImage, Source, digest
from overture.data.order import ShuffledOrder, generator, some_of
from overture.data.reading import ImageReader
from overture.data.stream import (
    DataConfig,
    TrainingStream,
    crops_per_row,
    evaluation_batches,
    tokenization_batches,
)
from overture.data.transforms import center_crop, ten_crop
from overture.errors import OvertureError, UsageError
from overture.processes import Processes

CONFIG = DataConfig(image_size=6, corrupt_limit=0.5)


def numbers(count, size=6):
    """Image i is a noise picture with label i % 3."""
    images = np.random.default_rng(1).integers(0, 256, (count, size, size), np.uint8)
    return ArraySource("numbers", images, np.arange(count) % 3, "abc")


class Counting(Source):
    """Decodes on every read, counts reads, and finds some images corrupt."""

    def __init__(self, inner, broken=()):
        self.inner, self.broken, self.reads = inner, set(broken), Counter()
        self.name, self.classes, self.labels = inner.name, inner.classes, inner.labels

    def read(self, index):
        self.reads[index] += 1
        if index in self.broken:
            raise CorruptImage(f"{self.path(index)}: broken")
        return self.inner.read(index)

    def path(self, index):
        return f"image-{index}"

    def fingerprint(self):
        return digest(b"")


def take(stream, start, count):
    return list(itertools.islice(stream.batches(start), count))


def same(first, second):
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.labels, second.labels)
        and torch.equal(first.indices, second.indices)
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_every_image_and_its_mirror_once_an_epoch(mirror):
    source = numbers(10)
    config = DataConfig(image_size=6, crop="center", mirror=mirror)
    stream = TrainingStream(source, config, batch_size=4, seed=0)
    items = 20 if mirror else 10
    for epoch in range(3):  # 20 or 10 items in batches of 4: the second case cuts a batch at the end of an epoch
        seen = [
            (int(index), image.numpy().tobytes())
            for batch in take(stream, 0, (epoch + 1) * items // 4 + 1)
            for index, image in zip(batch.indices, batch.images, strict=True)
        ][epoch * items : (epoch + 1) * items]
        expected = [(i, source.images[i].tobytes()) for i in range(10)]
        if mirror:
            expected += [(i, source.images[i, :, ::-1].tobytes()) for i in range(10)]
        assert sorted(seen) == sorted(expected)


def test_batches_are_what_they_say():
    source = numbers(30, size=9)
    batch = take(TrainingStream(source, CONFIG, 8, seed=0), 0, 1)[0]
    assert batch.images.shape == (8, 1, 6, 6)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert batch.labels.tolist() == [i % 3 for i in batch.indices.tolist()]
    colour = take(TrainingStream(source, DataConfig(image_size=6, channels=3), 8, seed=0), 0, 1)[0]
    assert colour.images.shape == (8, 3, 6, 6)
    assert torch.equal(colour.images, batch.images.expand(-1, 3, -1, -1))


def test_a_batch_is_a_function_of_seed_and_step():
    source = numbers(10)
    batches = take(TrainingStream(source, CONFIG, 8, seed=5), 0, 9)
    for start in (1, 4, 8):
        assert same(take(TrainingStream(source, CONFIG, 8, seed=5), start, 1)[0], batches[start])
    other = take(TrainingStream(source, CONFIG, 8, seed=6), 0, 1)[0]
    assert not same(other, batches[0])


def test_the_order_changes_from_epoch_to_epoch():
    order = ShuffledOrder(items=12, batch_size=12, seed=0)
    first, second = order.batch(0)[1], order.batch(1)[1]
    assert sorted(first) == sorted(second) == list(range(12))
    assert (first != second).any()


@given(total=st.integers(0, 60), count=st.one_of(st.none(), st.integers(0, 80)), seed=st.integers(0, 5))
def test_some_of_a_range(total, count, seed):
    chosen = some_of(total, count, seed)
    assert chosen.dtype == np.int64
    assert len(chosen) == (total if count is None else min(total, count))
    assert (np.diff(chosen) > 0).all()
    assert set(chosen.tolist()) <= set(range(total))
    assert (some_of(total, count, seed) == chosen).all()


def test_a_part_is_drawn_from_everywhere_and_grows_from_its_own_start():
    chosen = some_of(10_000, 1000)
    assert np.abs(np.bincount(chosen // 1000, minlength=10) - 100).max() < 4 * np.sqrt(1000 * 0.1 * 0.9)
    assert set(chosen) < set(some_of(10_000, 2000))
    assert len(set(chosen) & set(some_of(10_000, 1000, seed=1))) < 200


def test_purposes_have_random_numbers_of_their_own():
    drawn = {purpose: generator(purpose, 3, 4).random(5).tolist() for purpose in ("order", "crop", "choice", "sample")}
    assert len({tuple(numbers) for numbers in drawn.values()}) == 4
    assert generator("sample", 3, 4).random(5).tolist() == drawn["sample"]
    assert generator("sample", 4, 3).random(5).tolist() != drawn["sample"]


def test_crops_change_from_epoch_to_epoch():
    config = DataConfig(image_size=6, mirror=False)
    batches = take(TrainingStream(numbers(4), config, 4, seed=0), 0, 2)
    ordered = [batch.images[batch.indices.argsort()] for batch in batches]
    assert not torch.equal(ordered[0], ordered[1])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(world):
    source = numbers(10)
    whole = take(TrainingStream(source, CONFIG, 8, seed=5), 3, 4)
    parts = [take(TrainingStream(source, CONFIG, 8, 5, rank, world), 3, 4) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part[step].indices for part in parts]), batch.indices)


def test_wrong_batch_sizes_and_seeds():
    with pytest.raises(UsageError, match="multiple of the 3 processes"):
        TrainingStream(numbers(10), CONFIG, 8, 0, 0, 3)
    with pytest.raises(UsageError, match="seed"):
        ShuffledOrder(10, 2, -1)
    with pytest.raises(UsageError, match="nothing to train on"):
        ShuffledOrder(0, 2, 0)


def test_workers_change_nothing_and_leave_the_random_state_alone():
    source = Counting(numbers(24), broken=[3])
    with_workers = DataConfig(image_size=6, corrupt_limit=0.5, workers=2)
    alone = TrainingStream(source, CONFIG, 8, seed=2)
    expected = take(alone, 1, 7)
    state = torch.get_rng_state()
    stream = TrainingStream(source, with_workers, 8, seed=2)
    batches = stream.batches(1)
    for batch in expected:
        assert same(next(batches), batch)
    batches.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert stream.corrupt == alone.corrupt == ("image-3",)
    evaluated = list(evaluation_batches(source, with_workers, 7))
    for one, other in zip(evaluated, evaluation_batches(source, CONFIG, 7), strict=True):
        assert same(one, other)


class Interrupting(Counting):
    """Reading image 0 sends the reading process what Ctrl-C sends, or the end of a job."""

    def __init__(self, inner, sent=signal.SIGINT):
        super().__init__(inner)
        self.sent = sent

    def read(self, index):
        if index == 0:
            os.kill(os.getpid(), self.sent)
        return super().read(index)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_the_end_to_the_parent(sent):
    config = DataConfig(image_size=6, workers=1)
    batches = list(evaluation_batches(Interrupting(numbers(6), sent), config, 3))
    assert sum(len(batch.indices) for batch in batches) == 6


def test_without_workers_ctrl_c_is_the_parents():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(evaluation_batches(Interrupting(numbers(6)), CONFIG, 3))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_that_ends_does_not_break_into_the_work_of_the_parent(monkeypatch):
    """Torch's handler for it raises wherever the parent is: in the middle of a step."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)  # as in a new process
    before = signal.getsignal(signal.SIGCHLD)
    batches = TrainingStream(numbers(24), DataConfig(image_size=6, workers=1), 8, seed=0).batches()
    next(batches)
    during = signal.getsignal(signal.SIGCHLD)
    batches.close()
    assert during == signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_are_replaced_by_the_next_readable_one(workers):
    source = Counting(numbers(6), broken=[1, 2, 5])
    config = DataConfig(image_size=6, crop="center", mirror=False, corrupt_limit=0.5, workers=workers)
    stream = TrainingStream(source, config, 6, seed=0)
    batch = next(stream.batches())
    assert sorted(batch.indices.tolist()) == [0, 0, 3, 3, 3, 4]
    for index, label, image in zip(batch.indices.tolist(), batch.labels.tolist(), batch.images, strict=True):
        assert label == index % 3
        assert (image[0].numpy() == source.inner.images[index]).all()
    assert sorted(stream.corrupt) == ["image-1", "image-2", "image-5"]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_corrupt_images_stop_the_run(workers):
    config = DataConfig(image_size=6, corrupt_limit=0.2, workers=workers)
    for broken, ends in (([1, 2], False), ([1, 2, 5], True)):
        source = Counting(numbers(10), broken=broken)
        stream = TrainingStream(source, config, 5, seed=0)
        for read in (lambda s=stream: take(s, 0, 4), lambda s=source: list(evaluation_batches(s, config, 5))):
            if not ends:
                read()
                continue
            with pytest.raises(
                OvertureError,
                match=r"3 of 10 images are corrupt, more than a share of 0\.2 .*--data\.corrupt-limit.*image-",
            ) as caught:
                read()
            assert "\n" not in str(caught.value)
    with pytest.raises(OvertureError, match="none of its 4 images"):
        take(TrainingStream(Counting(numbers(4), broken=range(4)), config, 2, seed=0), 0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_from_workers_stay_one_line(workers):
    colour = ArraySource("colours", np.zeros((4, 6, 6, 3), np.uint8), np.zeros(4, int), "a")
    config = DataConfig(image_size=6, workers=workers)
    with pytest.raises(OvertureError, match=r"^colours\[\d\]: a colour image.*$"):
        next(TrainingStream(colour, config, 2, seed=0).batches())


class Dying(Counting):
    def read(self, index):
        os._exit(7)


def test_a_dead_worker_is_one_line():
    with pytest.raises(OvertureError, match=r"a data worker died.*--data\.workers") as caught:
        list(evaluation_batches(Dying(numbers(6)), DataConfig(image_size=6, workers=1), 3))
    assert "\n" not in str(caught.value)


def test_small_data_are_decoded_once(monkeypatch):
    source = Counting(numbers(6), broken=[2])
    stream = TrainingStream(source, CONFIG, 12, seed=0)
    take(stream, 0, 3)
    assert max(source.reads[i] for i in (0, 1, 3, 4, 5)) == 1
    monkeypatch.setattr("overture.data.reading.CACHE_BYTES", 5 * 1024)
    source = Counting(numbers(6))
    take(TrainingStream(source, CONFIG, 12, seed=0), 0, 3)
    assert source.reads[0] == 6  # the image and its mirror, in each of three epochs


class Photographs(Source):
    """One thumbnail, and then pictures of a hundred times its size."""

    name, classes, labels = "photographs", ("all",), np.zeros(40, np.int64)

    def __init__(self, mode):
        self.mode, self.reads = mode, Counter()

    def read(self, index):
        self.reads[index] += 1
        return Image.new(self.mode, (10, 10) if index == 0 else (100, 100))

    def path(self, index):
        return f"image-{index}"

    def fingerprint(self):
        return digest(b"")


@pytest.mark.parametrize(("mode", "channels", "each"), [("RGB", 3, 41_024), ("L", 1, 11_024), ("LA", 1, 11_024)])
def test_the_cache_is_bounded_in_bytes(monkeypatch, mode, channels, each):
    """Whichever image comes first: a thumbnail must not stand for all."""
    monkeypatch.setattr("overture.data.reading.CACHE_BYTES", 10 * each)
    source = Photographs(mode)
    reader = ImageReader(source, channels)
    for _ in range(2):
        for index in range(len(source)):
            reader.read(index)
    held = [index for index, count in source.reads.items() if count == 1]
    assert held == [*range(10)]  # the thumbnail, and nine others beside it
    assert reader._cached_bytes <= 10 * each


def test_readers_pickle_without_their_cache():
    stream = TrainingStream(Counting(numbers(6)), CONFIG, 6, seed=0)
    batch = next(stream.batches())
    reader = pickle.loads(pickle.dumps(stream._reader))
    assert stream._reader.images._cache
    assert (reader.images._cache, reader.images._cached_bytes) == ({}, 0)
    assert same(reader(next(stream._keys(0))), batch)


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_image_once_in_order(world):
    source = Counting(numbers(11, size=9), broken=[4])
    shares = [Processes(rank, world).share_out(11) for rank in range(world)]
    batches = [batch for share in shares for batch in evaluation_batches(source, CONFIG, 3, share)]
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert max(len(batch.indices) for batch in batches) == 3
    for index, image in zip(
        torch.cat([batch.indices for batch in batches]), torch.cat([batch.images for batch in batches]), strict=True
    ):
        assert (image[0].numpy() == center_crop(source.inner.read(int(index)), 6)[..., 0]).all()
    assert [path for batch in batches for path in batch.corrupt] == ["image-4"]


def test_tokenization_batches():
    source = Counting(numbers(7, size=20), broken=[3])
    rows = [range(2, 5), range(5, 7)]
    center, ten, drawn = (list(tokenization_batches(source, CONFIG, c, rows)) for c in ("center", "ten", "random-4"))
    assert [batch.indices.tolist() for batch in center] == [[2, 4, 4], [5, 6]]
    assert [batch.labels.tolist() for batch in ten] == [[2, 1, 1], [2, 0]]
    assert center[0].images.shape == (3, 1, 1, 6, 6)
    assert ten[1].images.shape == (2, 10, 1, 6, 6)
    assert (center[1].images[0, 0, 0].numpy() == center_crop(source.inner.read(5), 6)[..., 0]).all()
    assert (ten[1].images[1, :, 0].numpy() == ten_crop(source.inner.read(6), 6)[..., 0]).all()
    again = next(tokenization_batches(source, CONFIG, "random-4", [range(5, 6)]))  # however the rows are cut
    assert torch.equal(again.images[0], drawn[1].images[0])
    assert len({image.numpy().tobytes() for image in drawn[1].images[0]}) > 1
    for wrong in ("tne", "random-0", "random-", "random"):
        with pytest.raises(UsageError, match="unknown crops"):
            crops_per_row(wrong)


def test_default_config_builds_the_embedded_set():
    data = DataConfig().build()
    assert (len(data.train), len(data.held_out), data.num_classes) == (9000, 1000, 10)
    assert np.bincount(data.held_out.labels).tolist() == [100] * 10
    assert (DataConfig().build().held_out.labels == data.held_out.labels).all()
    batch = next(TrainingStream(data.train, DataConfig(), 4, seed=0).batches())
    assert batch.images.shape == (4, 1, 28, 28)


def test_held_out_data_need_the_same_classes(tmp_path):
    def save(name, classes):
        path = tmp_path / f"{name}.npz"
        np.savez(path, images=np.zeros((3, 6, 6), np.uint8), labels=np.arange(3) % 2, class_names=np.array(classes))
        return str(path)

    train, same_classes, other = save("a", ["cat", "dog"]), save("b", ["cat", "dog"]), save("c", ["cat", "dig"])
    assert len(DataConfig(train, held_out=same_classes).build().held_out) == 3
    with pytest.raises(OvertureError, match="the first that differs: dig"):
        DataConfig(train, held_out=other).build()


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"channels": 2},
        {"corrupt_limit": 1.0},
        {"held_out_share": 0.0},
        {"workers": -1},
        {"background": "whit"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DataConfig(**wrong)
