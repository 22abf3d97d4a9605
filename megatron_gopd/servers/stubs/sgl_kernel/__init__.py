"""SGLang's compiled kernels: without AMX it computes in torch, and only speculative decoding would call these.

Imported before SGLang makes buffers on the host, which it registers with CUDA wherever it computes (such as those of
--enable-return-routed-experts): here that has nothing to do.
"""

import types

import torch

torch.cuda.cudart = lambda: types.SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0)


def __getattr__(name):
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def kernel(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} needs a CPU with AMX and SGLang's compiled kernels")

    kernel.__name__ = name
    return kernel
