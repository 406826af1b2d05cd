"""The course's shared package: everything that more than one notebook needs, small enough to read.

Importing it takes well under a second, because heavy libraries are imported inside the functions that use them. It also settles,
before any of those libraries starts, whether this session may use the network: in the `embedded` profile it may not (see `runtime`).
It hides what Colab ships and peft refuses (see `colab`), and spares time that glibc and Python would spend on memory (see `process`).
"""

from utils.colab import hide_old_torchao
from utils.process import hide_notices, keep_freed_memory, look_for_garbage_less_often
from utils.runtime import go_offline

__version__ = "0.1.0"

go_offline()
hide_old_torchao()
hide_notices()
keep_freed_memory()
look_for_garbage_less_often()
