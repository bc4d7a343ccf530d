"""Makes ``import torchvision`` work beside a PyTorch it was not built for.

Lightning, torchmetrics and torch-fidelity all import torchvision. PyPI has one torchvision wheel for
Linux, and its compiled half is linked against CUDA. Beside a CPU-only PyTorch that half cannot be
loaded. torchvision means to go on without it, but stumbles: it describes the shapes of two of the
missing operators to PyTorch, which answers ``operator torchvision::nms does not exist``, and the
import of torchvision, and with it of Lightning, fails.

The cure is to declare those two operators first, without an implementation. Nothing here calls them:
they find overlapping boxes for object detection. Where the compiled half loads, nothing is declared.

torchvision is slow to import and this package must not be, so the check is made only when somebody
imports torchvision: :func:`watch` puts a finder in front of Python's own, which acts once, on that
name, and then steps aside. A script that imports Lightning *before* this package is not helped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

# PyTorch forgets the operators of a library that is garbage-collected.
_libraries: list[object] = []


class _Watcher:
    """A finder that finds nothing: it only notices that torchvision is about to be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by Python for every import; ``None`` passes the question on to the next finder."""
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            if not _compiled_half_loads():
                _declare_operators()
        return None


def watch() -> None:
    """Has the check made when torchvision is first imported."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Watcher())


def _compiled_half_loads() -> bool:
    """Whether torchvision's compiled operators fit this PyTorch; ``True`` if there is no torchvision."""
    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    import torch

    library = next(iter(sorted(Path(spec.origin).parent.glob("_C.*"))), None)
    if library is None:
        return False
    try:
        torch.ops.load_library(library)
    except OSError:
        return False
    return True


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
