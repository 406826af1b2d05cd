"""What Colab ships and a library of the course refuses: an old torchao, so far. Knows nothing else of Colab; importing it is cheap.

Colab's torchao is 0.10. peft, from 0.19 on, raises ImportError as soon as it adds an adapter where it finds a torchao below 0.16, even
though nothing of the course uses torchao. Replacing a package that Colab ships is not the course's to do, so peft is told there is none.
"""

from __future__ import annotations

import sys
from importlib import metadata

NEEDED_BY_PEFT = (0, 16)


def hide_old_torchao() -> bool:
    """Whether this process now takes torchao for missing, because peft would refuse the installed one.

    None in `sys.modules` is Python's own way to say that a module cannot be imported. One that is loaded already stays.
    """
    if sys.modules.get("torchao") is not None:
        return False
    try:
        found = metadata.version("torchao")
    except metadata.PackageNotFoundError:
        return False
    if tuple(int(number) for number in found.split(".")[:2]) >= NEEDED_BY_PEFT:
        return False
    sys.modules["torchao"] = None  # type: ignore[assignment]
    return True
