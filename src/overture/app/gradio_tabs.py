"""The page's tabs that work with pictures: generate, tokens, blend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from overture.app.figures_html import guidance_drawing, picture_figure, small_picture, told
from overture.app.gradio_answers import answer, answer_step_by_step, first_tokens_slider
from overture.app.making import Made, blended, decoded, edited, grow, plan_of
from overture.app.opened_run import Ids, OpenedRun
from overture.app.sampling_controls import sampling_of, whole_number
from overture.app.token_map import token_map
from overture.app.uploads import read_upload
from overture.errors import UsageError

__all__ = ["blend_tab", "generate_tab", "tokens_tab"]

CLICKED = """element.addEventListener('click', event => {
  const cell = event.target.closest('[data-place]');
  if (cell) trigger('click', {place: Number(cell.dataset.place)});
});"""
"""Tells which token was clicked; the slider beside does the same for the keyboard."""
MARKED = "() => { const field = document.activeElement; setTimeout(() => field.select && field.select(), 50); }"
"""Marks the words in a field that is entered, so that typing replaces them."""


# -- generate -------------------------------------------------------------------------------------------------------


def generate_tab(run: OpenedRun, drawn: gr.State) -> None:
    """A class, a seed and how to draw; the picture grows. ``drawn`` takes the last whole one (its :class:`Made`)."""
    with gr.Row():
        with gr.Column():
            choices = [(name, number) for number, name in enumerate(run.classes)]
            class_id = gr.Dropdown(choices, value=0, label="Class", info="type to search")
            class_id.focus(None, js=MARKED, api_visibility="private")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                make = gr.Button("Generate", variant="primary")
                following = gr.Button("Next seed")
            controls = sampling_controls(run)
        with gr.Column():
            picture = gr.HTML(
                told("The picture grows here. Tokens that have not come yet are those of a grey picture.")
            )
            first = first_tokens_slider(run, "Keep the first n tokens")
            again = gr.Button("Keep these, resample the rest")
    whole = [class_id, seed, *controls]

    def draw(class_id: Any, seed: Any, *values: Any, kept: Ids = ()) -> Iterator[tuple[Any, ...]]:
        number, sampling = whole_number(seed, "seed"), sampling_of(run.layout, values)
        for made in grow(run, plan_of(run, whole_number(class_id, "class"), number, sampling, kept)):
            yield picture_figure(made), made if made.finished else gr.skip(), number

    def draw_following(class_id: Any, seed: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        yield from draw(class_id, whole_number(seed, "seed") + 1, *values)

    def resample(made: Made | None, first: Any, class_id: Any, seed: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        kept = taken(made)[: whole_number(first, "n")]
        yield from draw(class_id, whole_number(seed, "seed") + 1, *values, kept=kept)

    outputs = [picture, drawn, seed]
    answer_step_by_step(make.click, draw, whole, outputs)
    answer_step_by_step(seed.submit, draw, whole, outputs)
    answer_step_by_step(following.click, draw_following, whole, outputs)
    answer_step_by_step(again.click, resample, [drawn, first, *whole], outputs)


def sampling_controls(run: OpenedRun) -> list[Any]:
    """Guidance and temperature of every segment, top-k, top-p; in the order of ``sampling_of``."""
    controls: list[Any] = []
    with gr.Accordion("Guidance and temperature", open=True):
        drawing = gr.HTML(guidance_drawing(run, sampling_of(run.layout, _at_rest(run))))
        for name in run.layout.names:
            labels = ("guidance", "scale", "cosine power", "temperature")
            several = len(run.layout.names) > 1
            shape, scale, power, heat = (f"{name}: {word}" if several else word.capitalize() for word in labels)
            with gr.Row():
                shapes = ["constant", "linear", "cosine"]
                controls.append(gr.Dropdown(shapes, value="constant", label=shape, min_width=170))
                controls.append(gr.Slider(0, 10, value=1, step=0.05, label=scale, min_width=170))
            with gr.Row():
                controls.append(gr.Slider(0.1, 5, value=1, step=0.1, label=power, min_width=170))
                controls.append(gr.Slider(0.1, 2, value=1, step=0.05, label=heat, min_width=170))
        with gr.Row():
            controls += [
                gr.Number(0, label="Top-k", info="0: all ids", precision=0, minimum=0, min_width=120),
                gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="1: all ids", min_width=140),
            ]

    def drawn_again(*values: Any) -> str:
        return guidance_drawing(run, sampling_of(run.layout, values))

    for control in controls[:-2]:
        answer(control.change, drawn_again, controls, [drawing])
    return controls


def _at_rest(run: OpenedRun) -> Sequence[Any]:
    return [*("constant", 1, 1, 1) * len(run.layout.names), 0, 1]


# -- tokens ---------------------------------------------------------------------------------------------------------


def tokens_tab(run: OpenedRun, drawn: gr.State) -> None:
    """A picture's tokens; one of them set to another id, and decoded."""
    ids = gr.State(None)
    with gr.Row():
        with gr.Column():
            sources = source_buttons(run)
            shown = gr.HTML(
                told("Upload a picture to see its tokens. It is cut and resized as the run cuts its images.")
            )
            tokens = gr.HTML(js_on_load=CLICKED)
        with gr.Column():
            place = gr.Slider(0, run.layout.length - 1, value=0, step=1, label="Token", info="or click it")
            number = gr.Number(0, label="Its id", precision=0, minimum=0)
            change = gr.Button("Set and decode", variant="primary")
            picture = gr.HTML()

    def show(image_ids: Ids, words: str) -> tuple[Any, ...]:
        made = decoded(run, image_ids, words=words)
        return (
            small_picture(made.image, words),
            token_map(run, image_ids, made.image, 0),
            image_ids,
            0,
            image_ids[0],
            "",
        )

    def encode(path: str | None) -> tuple[Any, ...]:
        return show(*uploaded(run, path))

    def take(made: Made | None) -> tuple[Any, ...]:
        return show(taken(made), "the generated picture")

    def point(image_ids: Ids | None, place: int) -> tuple[Any, ...]:
        if image_ids is None:
            return gr.skip(), gr.skip()
        last = run.layout.sizes[place] - 1
        made = decoded(run, image_ids)
        return token_map(run, image_ids, made.image, place), gr.update(value=image_ids[place], info=f"0 to {last}")

    def edit(image_ids: Ids | None, place: int, number: Any) -> tuple[Any, ...]:
        if image_ids is None:
            raise UsageError("edit: upload or take a picture first")
        made = edited(run, image_ids, whole_number(place, "token"), whole_number(number, "id"))
        return picture_figure(made), token_map(run, made.ids, made.image, int(place)), made.ids

    outputs = [shown, tokens, ids, place, number, picture]
    connect(sources, encode, take, drawn, outputs)
    tokens.click(clicked, None, place, api_visibility="private")
    answer(place.change, point, [ids, place], [tokens, number])
    answer(change.click, edit, [ids, place, number], [picture, tokens, ids])


def clicked(event: gr.EventData) -> int:
    """The token that was clicked, as the page tells it."""
    return int(event.place)


# -- blend ----------------------------------------------------------------------------------------------------------


def blend_tab(run: OpenedRun, drawn: gr.State) -> None:
    """The first n tokens of one picture and the rest of another."""
    states = []
    with gr.Row():
        for words in ("The first tokens of", "The other tokens of"):
            with gr.Column():
                state = gr.State(None)
                gr.HTML(f"<h3>{words}</h3>")
                sources = source_buttons(run)
                shown = gr.HTML()

                def show(ids: Ids, words: str) -> tuple[str, Ids]:
                    return small_picture(run.decode(ids), words), ids

                def encode(path: str | None) -> tuple[str, Ids]:
                    return show(*uploaded(run, path))

                def take(made: Made | None) -> tuple[str, Ids]:
                    return show(taken(made), "the generated picture")

                connect(sources, encode, take, drawn, [shown, state])
                states.append(state)
        with gr.Column():
            first = first_tokens_slider(run, "First n tokens")
            blend = gr.Button("Blend", variant="primary")
            picture = gr.HTML()

    def mix(one: Ids | None, other: Ids | None, first: Any) -> str:
        if one is None or other is None:
            raise UsageError("blend: choose both pictures first")
        return picture_figure(blended(run, one, other, whole_number(first, "n")))

    answer(blend.click, mix, [*states, first], [picture])


# -- shared ---------------------------------------------------------------------------------------------------------


def source_buttons(run: OpenedRun) -> list[Any]:
    """Where a picture may come from: a file, and where there is a prior the picture generated last."""
    with gr.Row():
        buttons: list[Any] = [gr.UploadButton("Upload a picture", file_types=["image"], size="md", min_width=120)]
        if run.prior is not None:
            buttons.append(gr.Button("Take the generated one", size="md", min_width=120))
    return buttons


def connect(sources: list[Any], encode: Any, take: Any, drawn: gr.State, outputs: list[Any]) -> None:
    """Let ``encode`` answer uploads, and ``take`` the other button, where it is there."""
    answer(sources[0].upload, encode, [sources[0]], outputs)
    for button in sources[1:]:
        answer(button.click, take, [drawn], outputs)


def uploaded(run: OpenedRun, path: str | None) -> tuple[Ids, str]:
    """The tokens of an uploaded picture, and what to say of it."""
    image = read_upload(path)
    grey = run.tokenizer.config.channels == 1 and image.mode not in ("L", "LA")
    return run.encode(image), "the upload, after encoding and decoding" + (", turned grey" if grey else "")


def taken(made: Made | None) -> Ids:
    """The tokens of the picture that was generated last."""
    if made is None:
        raise UsageError("no picture yet: generate one first")
    return made.ids
