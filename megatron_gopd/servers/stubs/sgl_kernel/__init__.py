"""SGLang's compiled kernels: without AMX it computes in torch, and only speculative decoding would call these."""


def __getattr__(name):
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def kernel(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} needs a CPU with AMX and SGLang's compiled kernels")

    kernel.__name__ = name
    return kernel
