from __future__ import annotations

from tests.evaluating import counting, evaluated, make_answer, suite, suite_path, suite_text  # noqa: F401
