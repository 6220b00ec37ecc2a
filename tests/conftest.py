"""Shared set-up: one thread per process, so that two test processes do not fight over two cores; and the device.

``OVERTURE_TEST_DEVICE=cuda python -m pytest -m device`` runs the tests that have something to say on an accelerator there;
without it they run on the CPU, as all others do: also where there is an accelerator, which commands would choose by
themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from overture.processes import choose_device

torch.set_num_threads(1)
DEVICE = os.environ.get("OVERTURE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks for it, and for the processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "device: has something to say on an accelerator (OVERTURE_TEST_DEVICE)")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests marked ``device`` run; float32 is float32 there."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return choose_device(DEVICE)


@pytest.fixture(scope="session", autouse=True)
def no_converted_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a developer has fetched with ``overture weights`` changes no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERTURE_WEIGHTS", str(tmp_path_factory.mktemp("weights") / "none"))
        yield
