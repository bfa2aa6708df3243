"""Kernels of OneFlow models; each fast path has a plain definition in `reference`."""
