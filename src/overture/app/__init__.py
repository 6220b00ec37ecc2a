"""The page in a browser: ``overture app RUN``, or a Space of the hub. Gradio is imported when a page is built.

What the page does are plain functions of an :class:`~overture.app.opened_run.OpenedRun`; ``gradio_page`` puts controls
before them, ``gradio_server`` says who may reach it and how much they may send.
"""
