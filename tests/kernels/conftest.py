"""Triton's interpreter, made quick enough to test with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import triton.language as tl
from triton.language import standard
from triton.runtime import interpreter


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> Iterator[None]:
    """The interpreter makes the language its own at every call of a function, and looks at every sum of integers for
    an overflow that nothing reports: once, and never, halves its time.
    """
    kernels = (tl.cdiv.fn, _uses_language)  # functions that see `triton.language.core`, and `triton.language`
    scopes = [interpreter._patch_lang(kernel) for kernel in kernels]
    builder = interpreter.interpreter_builder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda kernel: interpreter._LangPatchScope())
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield
    for scope in reversed(scopes):
        scope.restore()


def _uses_language() -> None:
    tl.device_assert(standard)
