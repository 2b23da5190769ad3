"""`pytest -p nbval_ipc --nbval-lax ...`: nbval's kernels talk over unix sockets, because TCP ports race."""

import nbval.kernel

from mmkit.notebooks import BlockingIpcKernelManager

nbval.kernel.KernelManager = BlockingIpcKernelManager
