"""Other people's formats: the released weights of "Prologue" (arXiv 2605.06137)."""

from overture.interop.convert_release import import_release
from overture.interop.releases import RELEASES

__all__ = ["RELEASES", "import_release"]
