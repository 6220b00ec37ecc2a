"""``overture generate``: where images go, what they are called, and how many are held at a time."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from overture.cli import main
from overture.config import to_dict
from overture.data.sources import open_source
from overture.errors import UsageError
from overture.model_files import save_model
from overture.nn.transformer import TransformerConfig
from overture.pictures import save_folder, save_npz
from overture.priors import PriorConfig
from overture.runs.class_names import class_names
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of eleven classes that nobody has trained."""
    torch.manual_seed(0)
    root, size = tmp_path_factory.mktemp("run"), TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)
    segments = (SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),)
    config = TokenizerConfig(8, 1, 4, num_classes=11, encoder=size, decoder=size, segments=segments)
    prior = PriorConfig(16, 1, 2, 2.0, 4, num_classes=11)
    about = {"config": to_dict(config), "use_weights": "raw"}
    save_model(root / "tokenizer/model.safetensors", "tokenizer", {"raw": config.build().state_dict()}, about)
    about = {"config": to_dict(prior), "layout": config.layout.to_dict()}
    save_model(root / "prior/model.safetensors", "prior", {"raw": prior.build(config.layout).state_dict()}, about)
    return root


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_old_pictures_are_not_counted_among_the_new(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one is as good as none
    assert main(["generate", str(run), "--count", "2", "--out", str(out)]) == 0
    before = files(out)
    assert len(before) == 22
    assert main(["generate", str(run), "--count", "1", "--out", str(out)]) == 2
    assert capsys.readouterr().err.endswith(
        f"--out {out}: is not empty; old pictures would be counted among the new ones\n"
    )
    assert files(out) == before
    place = tmp_path / "file"
    place.touch()
    assert main(["generate", "no such run", "--out", str(place)]) == 2  # before anything is looked for
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is not empty"):
        save_folder(iter([]), [], [], out)


def test_folders_of_classes_read_back_in_the_order_of_their_labels(run: Path, tmp_path: Path) -> None:
    """With names that sort as they count, whoever reads them."""
    assert main(["generate", str(run), "--count", "1", "--out", str(tmp_path / "out")]) == 0
    source = open_source(str(tmp_path / "out"))
    assert source.classes == tuple(sorted(source.classes)) == tuple(f"{number:02d}" for number in range(11))
    assert class_names(None, 1000)[::333] == ["000", "333", "666", "999"]
    assert class_names(None, 10) == [str(number) for number in range(10)]


def test_classes_by_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class {letter}/{letter}" for letter in "abcdefghijk"]
    (run / "classes.json").write_text(json.dumps(names))
    try:
        words = [
            "generate",
            str(run),
            "--count",
            "1",
            "--classes",
            "class c/c,9",
            "--json",
            "--out",
            str(tmp_path / "out"),
        ]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == [2, 9]
        assert files(tmp_path / "out") == ["class c-c/000000.png", "class j-j/000001.png"]
        assert main(["generate", str(run), "--classes", "class z/z", "--out", str(tmp_path / "a.png")]) == 2
        assert "no class 'class z/z'" in capsys.readouterr().err
        for wrong in (names[:10], ["same"] * 11):  # of another model, or none that tell classes apart
            (run / "classes.json").write_text(json.dumps(wrong))
            assert class_names(str(run), 11)[10] == "10"
    finally:
        (run / "classes.json").unlink()


@pytest.mark.parametrize("odd", [["a/b", "a-b", "c"], ["a", "..", "c"], ["a", ".b", "c"], ["a", "", "c"]])
def test_names_that_are_no_folders_of_their_own_are_numbered(tmp_path: Path, odd: list[str]) -> None:
    """Pictures of two classes do not fall together, and none lie elsewhere or hidden."""
    save_folder(iter([torch.zeros(3, 1, 4, 4, dtype=torch.uint8)]), [2, 1, 0], odd, tmp_path / "deep" / "out")
    source = open_source(str(tmp_path / "deep" / "out"))
    assert source.classes == tuple(f"{n} {name.replace('/', '-')}".rstrip(". ") for n, name in enumerate(odd))
    assert [Path(source.path(index)).name for index in range(3)] == ["000002.png", "000001.png", "000000.png"]
    assert len(files(tmp_path)) == 3


class Watched:
    """Batches of images that count how many of them are alive."""

    def __init__(self, batches: int) -> None:
        self.count, self.alive, self.most = batches, weakref.WeakSet[Tensor](), 0

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.count):
            batch = torch.full((5, 1, 4, 4), number, dtype=torch.uint8)
            self.alive.add(batch)
            self.most = max(self.most, len(self.alive))
            yield batch
            del batch


def test_a_set_is_never_held_whole(tmp_path: Path) -> None:
    labels = [*range(50)]
    for save in (lambda batches: save_npz(batches, labels, tmp_path / "a.npz"),
                 lambda batches: save_folder(batches, labels, [str(n) for n in labels], tmp_path / "out")):  # fmt: skip
        batches = Watched(10)
        save(batches)
        assert batches.most <= 2
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_0"].shape == (50, 4, 4, 1)
        assert file["arr_0"][:, 0, 0, 0].tolist() == [number // 5 for number in range(50)]
        assert file["arr_1"].tolist() == labels
    assert np.asarray(Image.open(tmp_path / "out" / "37" / "000037.png")).max() == 7


def test_a_place_without_a_format_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "no such run", "--out", "a.gif"]) == 2
    assert "give a .png (one grid), an .npz (ADM style), a folder, or a .npy (token ids)" in capsys.readouterr().err
