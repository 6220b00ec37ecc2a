"""TensorBoard: event files in the run, ``RUN/loggers/tensorboard``. Written without torch, which takes seconds to load."""

from __future__ import annotations

import time

from overture.loggers.logger import Line, Picture, Record, RunLogger

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(RunLogger):
    """One event file each time that the run goes on; TensorBoard reads those of a folder as one run."""

    package = "tensorboard"

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(record.folder))

    def numbers(self, line: Line) -> None:
        """Scalars ``STAGE/NAME``."""
        self._write(line.step, [{"tag": f"{line.stage}/{name}", "simple_value": x} for name, x in line.values.items()])

    def picture(self, picture: Picture) -> None:
        """An image, as the PNG that it is."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(picture.path) as opened:
            width, height, channels = opened.width, opened.height, len(opened.getbands())
        image = Summary.Image(
            width=width, height=height, colorspace=channels, encoded_image_string=picture.path.read_bytes()
        )
        self._write(picture.step, [{"tag": picture.name, "image": image}])

    def flush(self) -> None:
        """Onto the disk, where TensorBoard looks."""
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()

    def _write(self, step: int, values: list[dict[str, object]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
