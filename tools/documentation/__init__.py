"""The documentation site: what mkdocs builds beside what is written in docs/."""
