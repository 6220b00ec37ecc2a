"""The page in a browser: what it does, without one; what its server refuses; and pictures made again byte for byte."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from overture.app.figures_html import guidance_drawing, marks_of, picture_figure
from overture.app.gradio_server import FilesRefused
from overture.app.making import Made, blended, edited, grow, make, plan_of
from overture.app.opened_run import OpenedRun
from overture.app.picture_record import PictureRecord, png_bytes
from overture.app.run_facts import about_run, entropy_curve, report_frame
from overture.app.sampling_controls import sampling_of, whole_number
from overture.app.token_map import token_map
from overture.app.uploads import MAX_BYTES, MAX_PIXELS, read_upload
from overture.cli import main
from overture.config import to_dict
from overture.errors import OvertureError, UsageError
from overture.hub import HubFolder
from overture.model_files import find_model, save_model
from overture.nn.transformer import TransformerConfig
from overture.priors import Guidance, PriorConfig, Sampling
from overture.tokenizers import CodebookConfig, SegmentConfig, TokenizerConfig

NAMES = ["cat", "dog & <b>", "bird"]


def written(root: Path, *, prior: bool = True, channels: int = 3, seed: int = 0) -> Path:
    """A run of two segments, one a row and one on the picture, that nobody has trained."""
    torch.manual_seed(seed)
    size = TransformerConfig(dim=16, depth=1, heads=2, condition_dim=4)
    segments = (
        SegmentConfig("first", "queries", 3, CodebookConfig("uniform", k_max=5), separator=True),
        SegmentConfig("visual", "patches", 0, CodebookConfig("uniform", k_max=8)),
    )
    config = TokenizerConfig(8, channels, 4, num_classes=3, encoder=size, decoder=size, segments=segments)
    tokenizer = config.build()
    for parameter in tokenizer.parameters():  # fresh ones give the same grey for all tokens
        torch.nn.init.normal_(parameter, std=0.3)
    about: dict[str, Any] = {"config": to_dict(config), "use_weights": "raw"}
    save_model(root / "tokenizer/model.safetensors", "tokenizer", {"raw": tokenizer.state_dict()}, about)
    if prior:
        made = PriorConfig(16, 1, 2, 2.0, 4, num_classes=3).build(config.layout)
        about = {"config": to_dict(PriorConfig(16, 1, 2, 2.0, 4, num_classes=3)), "layout": config.layout.to_dict()}
        save_model(root / "prior/model.safetensors", "prior", {"raw": made.state_dict()}, about)
        (root / "classes.json").write_text(json.dumps(NAMES))
    return root


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("app") / "run")


@pytest.fixture(scope="module")
def run(path: Path) -> OpenedRun:
    return OpenedRun.open(path)


@pytest.fixture(scope="module")
def made(run: OpenedRun) -> Made:
    return make(run, plan_of(run, 1, 7, Sampling.parse("first: 2, visual: cosine 3 power 1.5", "visual: 0.8", 4, 0.9)))


def picture(mode: str, size: tuple[int, int] = (20, 12), seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode)


# -- making ---------------------------------------------------------------------------------------------------------


def test_a_picture_grows_to_what_the_pipeline_samples(run: OpenedRun) -> None:
    from overture.pipeline import Pipeline

    sampling = Sampling.parse("first: 2, visual: 3")
    steps = list(grow(run, plan_of(run, 2, 5, sampling)))
    pipe = Pipeline(run.tokenizer, run.needs_prior())
    expected = next(pipe.sample_ids([2], sampling, seed=5))[0]
    assert list(steps[-1].ids) == expected.tolist()
    assert np.array_equal(np.asarray(steps[-1].image), pipe.decode(expected[None])[0].permute(1, 2, 0).numpy())
    assert [step.filled for step in steps] == sorted({step.filled for step in steps} - {0})
    assert steps[-1].finished
    for step in steps:
        assert step.ids == steps[-1].ids[: step.filled] + run.nothing[step.filled :]


@pytest.mark.parametrize("first", [0, 2, 3, 5, 7])
def test_the_first_tokens_are_kept_and_the_rest_drawn(run: OpenedRun, made: Made, first: int) -> None:
    others = [make(run, plan_of(run, 0, seed, Sampling(), made.ids[:first])).ids for seed in range(8)]
    assert all(ids[:first] == made.ids[:first] for ids in others)
    assert (first == 7) == (len(set(others)) == 1)


def test_edits_and_blends(run: OpenedRun, made: Made) -> None:
    other = make(run, plan_of(run, 0, 1, Sampling()))
    changed = edited(run, made.ids, 4, (made.ids[4] + 1) % 8)
    assert [a == b for a, b in zip(changed.ids, made.ids, strict=True)] == [True] * 4 + [False] + [True] * 2
    assert changed.image.tobytes() != made.image.tobytes()
    assert changed.image.tobytes() == run.decode(changed.ids).tobytes()
    assert blended(run, made.ids, other.ids, 3).ids == made.ids[:3] + other.ids[3:]
    assert blended(run, made.ids, other.ids, 7).image.tobytes() == made.image.tobytes()
    for wrong in ((0, 5), (7, 0), (-1, 0), (6, 8), (6, -1)):
        with pytest.raises(UsageError, match="token"):
            edited(run, made.ids, *wrong)
    with pytest.raises(UsageError, match="first 8 tokens"):
        blended(run, made.ids, other.ids, 8)


def test_what_cannot_be_drawn_is_refused(run: OpenedRun) -> None:
    for class_id, seed, sampling, words in (
        (3, 0, Sampling(), "class 3 is out of range"),
        (-1, 0, Sampling(), "class -1"),
        (0, -1, Sampling(), "seed is -1"),
        (0, 0, Sampling.parse("colour: 2"), "no segment 'colour'"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_of(run, class_id, seed, sampling)
    with pytest.raises(OvertureError, match="kept tokens"):
        make(run, plan_of(run, 0, 0, Sampling(), (5,)))


def test_a_run_without_a_prior_has_tokens_and_no_more(tmp_path: Path) -> None:
    run = OpenedRun.open(written(tmp_path / "part", prior=False))
    assert run.prior is None
    assert "holds no prior" in about_run(run)
    ids = run.encode(picture("RGB"))
    assert blended(run, ids, ids, 2).ids == ids
    with pytest.raises(UsageError, match="part: holds no prior"):
        plan_of(run, 0, 0, Sampling())


def test_a_prior_that_cannot_be_had_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a repository that holds none is opened without one."""
    tokenizer = str(find_model(path, "tokenizer"))

    def fetch(folder: HubFolder, name: str) -> Path | None:
        if name == "prior/model.safetensors":
            raise OvertureError(f"{folder}: cannot be had from the hub")
        return Path(tokenizer) if name == "tokenizer/model.safetensors" else None

    monkeypatch.setattr(HubFolder, "fetch", fetch)
    with pytest.raises(OvertureError, match="cannot be had from the hub"):
        OpenedRun.open("hf:ada/clothes")


def test_encoding_prepares_pictures_as_the_pipeline_does(run: OpenedRun, tmp_path: Path) -> None:
    from overture.pipeline import Pipeline

    pipe = Pipeline(run.tokenizer, run.needs_prior())
    for mode in ("RGB", "RGBA", "L"):
        image = picture(mode, (37, 21))
        assert list(run.encode(image)) == pipe.encode(image)[0].tolist()
    grey = OpenedRun.open(written(tmp_path / "grey", channels=1))
    assert grey.encode(picture("RGB")) == grey.encode(picture("RGB").convert("L"))
    assert grey.decode(grey.encode(picture("RGBA"))).mode == "L"


# -- controls -------------------------------------------------------------------------------------------------------


def test_controls_say_what_is_written_elsewhere(run: OpenedRun) -> None:
    at_rest = ["constant", 1, 1, 1]
    assert sampling_of(run.layout, [*at_rest, *at_rest, 0, 1]) == Sampling()
    values = ["constant", 0.7, 2, 1, "cosine", 3.75, 0.2, 0.9, 5, 0.8]
    said = sampling_of(run.layout, values)
    same = Sampling.parse("first: 0.7, visual: cosine 3.75 power 0.2", "first: 1, visual: 0.9", 5, 0.8)
    assert said == same
    assert Sampling.parse(**said.to_dict()) == said
    for place, wrong in ((1, None), (1, float("nan")), (3, "x"), (8, 1.5), (3, 0)):
        with pytest.raises(UsageError):
            sampling_of(run.layout, [*values[:place], wrong, *values[place + 1 :]])
    assert whole_number(3.0, "seed") == 3


def test_marks_are_the_ends_of_the_segments(run: OpenedRun) -> None:
    assert marks_of(run) == (("none", 0), ("first ends", 3), ("visual ends", 7))


def test_the_schedule_is_drawn_as_it_is_used(run: OpenedRun) -> None:
    guidance = Guidance.split(visual=3.0)
    drawing = guidance_drawing(run, Sampling(guidance))
    heights = [float(pair.split(",")[1]) for pair in drawing.split('points="')[1].split('"')[0].split()]
    assert len(heights) == 2 * run.layout.sequence_length
    scales = guidance.scales(run.layout)
    assert [height == max(heights) for height in heights[::2]] == [scale == 1 for scale in scales]


# -- what is shown --------------------------------------------------------------------------------------------------


def test_tokens_lie_on_the_picture_or_in_a_row(run: OpenedRun, made: Made) -> None:
    drawing = token_map(run, made.ids, made.image, chosen=4)
    row, grid = drawing.split("</figure>")[:2]
    assert row.count("<rect") == 3
    assert "<image" not in row
    assert grid.count("<rect") == 4
    assert "<image" in grid
    assert drawing.count('class="chosen" data-place="4"') == 1
    assert f">{made.ids[4]}</text>" in grid


def test_names_of_classes_are_no_markup(made: Made) -> None:
    page = picture_figure(made)
    assert "<b>" not in page
    assert "dog &amp; &lt;b&gt;, seed 7" in page
    assert 'download="dog-b-7.png"' in page


def test_a_picture_that_still_grows_cannot_be_saved(run: OpenedRun) -> None:
    first = next(grow(run, plan_of(run, 0, 0, Sampling())))
    assert "download" not in picture_figure(first)
    assert f"{first.filled} of 7 tokens" in picture_figure(first)


def test_models_alone_have_no_report(run: OpenedRun) -> None:
    assert "nothing was measured" in entropy_curve(run) == report_frame(run)


# -- pictures made again --------------------------------------------------------------------------------------------


def saved(made: Made, place: Path) -> Path:
    place.write_bytes(png_bytes(made.image, made.record.to_text()))
    return place


def test_the_same_picture_again_byte_for_byte(
    path: Path, run: OpenedRun, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resampled = make(run, plan_of(run, 0, 9, Sampling.parse(2.0), made.ids[:3]))
    for number, one in enumerate((made, resampled, edited(run, made.ids, 0, 1), blended(run, made.ids, made.ids, 2))):
        source, out = saved(one, tmp_path / f"{number}.png"), tmp_path / "again.png"
        assert main(["generate", str(path), "--like", str(source), "--out", str(out), "--device", "cpu"]) == 0
        assert out.read_bytes() == source.read_bytes()
        assert "the same, byte for byte" in capsys.readouterr().err


def test_other_bytes_are_told(path: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = Image.fromarray(np.asarray(made.image) ^ 1)
    source = saved(replace(made, image=changed), tmp_path / "a.png")
    words = [
        "generate",
        str(path),
        "--like",
        str(source),
        "--out",
        str(tmp_path / "b.png"),
        "--json",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["same"] is False


def test_pictures_of_other_models_are_refused(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(made, tmp_path / "a.png")
    stranger, out = written(tmp_path / "stranger", seed=1), tmp_path / "b.png"
    assert main(["generate", str(stranger), "--like", str(source), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"is of another tokenizer ({made.record.tokenizer_hash}, here is" in said
    assert said.count("\n") == 1
    record = replace(made.record, prior_hash="0" * 16)
    saved(replace(made, record=record), source)
    assert main(["generate", str(stranger.parent / "stranger"), "--like", str(source), "--out", str(out)]) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "3"], "leave out --seed"),
        (["--guidance", "2"], "leave out --guidance"),
        (["--bf16"], "leave out --bf16"),
        (["--out", "x.npz"], "is a .png"),
        (["--like", "nowhere.png"], "no such picture"),
    ],
)
def test_like_takes_all_settings_from_the_picture(
    path: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    source = saved(made, tmp_path / "a.png")
    assert main(["generate", str(path), "--like", str(source), *words]) == 2
    assert said in capsys.readouterr().err


def test_settings_that_are_none_are_refused(run: OpenedRun, made: Made) -> None:
    good = json.loads(made.record.to_text())
    assert PictureRecord.from_text(json.dumps(good), "x") == made.record
    wrong: list[Any] = ["", "[]", "{}", "7", "[" * 9999]
    wrong += [json.dumps({**good, **change}) for change in (
        {"format": 2}, {"seed": -1}, {"seed": True}, {"kept": [2**40]}, {"kept": ["0"]}, {"guidance": "much"},
        {"class_id": "0"}, {"more": 1}, {"temperature": "0"},
    )]  # fmt: skip
    for text in wrong:
        with pytest.raises(OvertureError):
            PictureRecord.from_text(text, "x")
    for change in ({"kept": [0] * 8}, {"prior_hash": "", "kept": []}, {"guidance": "colour: 2"}):
        record = PictureRecord.from_text(json.dumps({**good, **change}), "x")
        with pytest.raises(OvertureError):
            record.check(run.layout, run.tokenizer_hash, run.prior_hash, "x")


def test_a_picture_of_elsewhere_says_nothing(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture("RGB").save(tmp_path / "plain.png")
    assert main(["generate", str(path), "--like", str(tmp_path / "plain.png")]) == 2
    assert "says nothing of how it was made" in capsys.readouterr().err
    (tmp_path / "text.png").write_text("no picture")
    assert main(["generate", str(path), "--like", str(tmp_path / "text.png")]) == 1
    assert "no PNG that can be read" in capsys.readouterr().err


# -- what may be sent and asked for ---------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_uploads_are_read_within_limits(tmp_path: Path) -> None:
    place = tmp_path / "upload"
    place.write_bytes(png(picture("RGBA")))
    assert read_upload(place).tobytes() == picture("RGBA").tobytes()
    side = int(MAX_PIXELS**0.5)
    for data, words in (
        (b"", "empty"),
        (b"no image at all", "cannot decode"),
        (png(picture("RGB"))[:60], "cannot decode"),
        (bomb(side + 1, side + 1), f"at most {MAX_PIXELS:,}"),
        (bomb(60000, 60000), f"more than {MAX_PIXELS:,} pixels"),
        (png(picture("RGB", (400, 2))), "too narrow"),
        (bytes(MAX_BYTES + 1), "larger than"),
    ):
        place.write_bytes(data)
        with pytest.raises(OvertureError, match=words) as told:
            read_upload(place)
        assert "\n" not in str(told.value)
        assert str(tmp_path) not in str(told.value)
    with pytest.raises(UsageError, match="choose a picture"):
        read_upload(None)
    with pytest.raises(UsageError, match="send it again"):
        read_upload(tmp_path / "gone")


@pytest.mark.parametrize(
    ("address", "passed"),
    [
        ("/", True),
        ("/config", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/upload", True),
        ("/gradio_api/file=/etc/passwd", False),
        ("/gradio_api/file=../run/config.json", False),
        ("/file=/etc/passwd", False),
        ("/gradio_api/file/etc/passwd", False),
        ("/gradio_api/proxy=http://127.0.0.1:1/", False),
        ("/monitoring", False),
    ],
)
def test_no_file_of_the_server_can_be_asked_for(address: str, passed: bool) -> None:
    reached, sent = [], []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(FilesRefused(page)({"type": "http", "path": address}, None, send))
    assert reached == ([address] if passed else [])
    assert [message.get("status") for message in sent[:1]] == ([] if passed else [403])


def picture_at(path: str) -> dict[str, Any]:
    """What a browser sends of a picture."""
    return {"path": path, "url": "http://127.0.0.1:7860/gradio_api/file=a.png", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", None),
        (json.dumps({"data": [picture_at("/tmp/gradio/0/a.png"), "http://a/b", 3], "fn_index": 0}).encode(), None),
        (json.dumps({"data": [picture_at("http://127.0.0.1:1/a.png")]}).encode(), 403),
        (json.dumps({"data": [{"a": [picture_at("HTTPS://a.example/a.png")]}]}).encode("utf-16"), 403),
        (b'{"data": [{"\\u0070ath": "\\u0068ttp://a/b"}]}', 403),
        (b"{", 403),
        (b"[" * 100_000, 403),
        (b'"' + b"a" * MAX_BYTES + b'"', 413),
    ],
    ids=["empty", "upload", "address", "deep in utf-16", "escaped", "no json", "nested", "large"],
)
def test_nothing_is_fetched_for_a_request(body: bytes, status: int | None) -> None:
    half = len(body) // 2
    given = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:]},
    ]
    reached, sent = [], []

    async def receive() -> Any:
        return given.pop(0) if given else {"type": "http.disconnect"}

    async def page(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            reached.append(message["body"])

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join"}
    asyncio.run(FilesRefused(page)(scope, receive, send))
    assert b"".join(reached) == (body if status is None else b"")
    assert [message.get("status") for message in sent[:1]] == ([] if status is None else [status])


def test_wrong_usage_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "somewhere", "--port", "0"]) == 2
    assert "--port is 0" in capsys.readouterr().err
    if importlib.util.find_spec("gradio") is None:
        assert main(["app", str(tmp_path)]) == 1
        assert "pip install 'overture[app]'" in capsys.readouterr().err


# -- with gradio ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(run: OpenedRun) -> Iterator[str]:
    pytest.importorskip("gradio")
    from overture.app.gradio_server import launch

    page = launch(run)
    yield page.local_url
    page.close(verbose=False)


def test_the_page_is_served_to_this_machine_alone(address: str) -> None:
    import httpx

    assert address.startswith("http://127.0.0.1:")
    assert "Overture" in httpx.get(address).text
    config = httpx.get(f"{address}config").json()
    assert "fonts.googleapis" not in json.dumps(config)
    for asked in ("gradio_api/file=/etc/passwd", "gradio_api/file=http://example.com/", "file=/etc/passwd"):
        assert httpx.get(f"{address}{asked}").status_code == 403
    for asked in ("static/..%2f..%2f..%2fetc/passwd", "assets/..%2f..%2fetc/passwd", "docs", "monitoring"):
        assert httpx.get(f"{address}{asked}").status_code >= 400
    picture = {"data": [picture_at(f"{address}config")], "fn_index": 0, "session_hash": "a"}
    assert httpx.post(f"{address}gradio_api/queue/join", json=picture).status_code == 403
    too_large = {"files": ("a.png", bytes(MAX_BYTES + 1))}
    assert httpx.post(f"{address}gradio_api/upload", files=too_large).status_code >= 400


def test_every_control_has_a_label(run: OpenedRun) -> None:
    gr = pytest.importorskip("gradio")
    from overture.app.gradio_page import build_page

    for block in build_page(run).blocks.values():
        if isinstance(block, gr.Slider | gr.Number | gr.Dropdown):
            assert block.label
        if isinstance(block, gr.Button | gr.UploadButton):
            assert block.value or block.label
    part = build_page(replace(run, prior=None, classes=()))
    tabs = {block.label for block in part.blocks.values() if isinstance(block, gr.Tab)}
    assert tabs == {"Tokens", "Blend", "Run"}


def test_errors_are_one_line_in_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    from overture.app.gradio_answers import in_page

    assert in_page(UsageError("seed is <b>, \n needs >= 0")).message == "seed is &lt;b&gt;, needs &gt;= 0"
    assert "/etc" not in in_page(RuntimeError("/etc/secret")).message
    assert "/etc/secret" in capsys.readouterr().err
