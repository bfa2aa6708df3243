"""The events of mkdocs on the real documents; `make docs` builds the whole site, strictly, in every run of CI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mkdocs.config.base import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, get_files
from mkdocs.structure.pages import Page

from tests.documents import DOCUMENTS
from tools.documentation import hooks


@pytest.fixture(scope="module")
def config(root: Path, tmp_path_factory: pytest.TempPathFactory) -> MkDocsConfig:
    """That of the site, without its plugins and its theme."""
    plain = {"theme": "mkdocs", "plugins": [], "hooks": [], "markdown_extensions": [], "use_directory_urls": False}
    loaded = load_config(str(root / "mkdocs.yml"), site_dir=str(tmp_path_factory.mktemp("site")), **plain)
    loaded.plugins._current_plugin = "hooks"  # as while an event runs: mkdocs notes who makes a file
    return loaded


@pytest.fixture(scope="module")
def files(config: MkDocsConfig) -> Files:
    return hooks.on_files(get_files(config), config)


def markdown_of(uri: str, files: Files, config: MkDocsConfig) -> str:
    """A page as it is rendered."""
    file = files.src_uris[uri]
    return hooks.on_page_markdown(file.content_string, Page(None, file, config), config, files)


def pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_documents_and_pictures_lie_where_they_do_in_the_repository(files: Files, root: Path) -> None:
    assert {str(path.relative_to(root)) for path in DOCUMENTS} <= files.src_uris.keys()
    assert "docs/gallery.png" in files.src_uris
    assert files.src_uris["README.md"].dest_uri == "index.html"


def test_every_link_leads_to_a_file_of_the_site(files: Files, config: MkDocsConfig) -> None:
    for file in (file for file in files.documentation_pages() if file.abs_src_path):
        for link, _ in hooks.LINK.findall(hooks.FENCED.sub("", markdown_of(file.src_uri, files, config))):
            assert hooks.target_of(link, file.src_uri) in files.src_uris, f"{file.src_uri}: {link}"


def test_a_link_to_source_leads_to_a_page_of_it(files: Files, config: MkDocsConfig, root: Path) -> None:
    assert "](../oneflow_dist/training.py.md)" in markdown_of("docs/training_step.md", files, config)
    assert (root / "oneflow_dist/training.py").read_text() in files.src_uris[
        "oneflow_dist/training.py.md"
    ].content_string
    assert "](docs/decisions/README.md)" in markdown_of("README.md", files, config)
    decisions = files.src_uris["docs/decisions/README.md"].content_string
    assert "](0010-a-tensor-axis-that-deals-out-rows.md)" in decisions
    assert (
        "](../../reference/modules/oneflow_dist/guard/watchdog.md)"
        in files.src_uris["oneflow_dist/guard/README.md"].content_string
    )


def test_documents_beside_docs_come_with_what_they_link_to(
    config: MkDocsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    for path, text in {
        "README.md": "[model](models/a) [no](models/none)",
        "models/a/README.md": "[code](code.py) ![picture](b.png)",
        "models/a/code.py": "x = 1\n",
        "models/a/b.png": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    files = Files([File.generated(config, "README.md", abs_src_path=str(tmp_path / "README.md"))])
    hooks.add_linked(files, config)
    assert set(files.src_uris) == {"README.md", "models/a/README.md", "models/a/code.py.md", "models/a/b.png"}
    assert "](models/a/README.md)" in markdown_of("README.md", files, config)
    assert "](code.py.md)" in markdown_of("models/a/README.md", files, config)


def test_every_document_has_its_place_in_the_navigation(files: Files, config: MkDocsConfig, root: Path) -> None:
    placed = pages_of(config.nav)
    assert len(placed) == len(set(placed))
    assert set(placed) <= files.src_uris.keys()
    assert {str(path.relative_to(root)) for path in DOCUMENTS} <= set(placed)
    assert "docs/decisions/0001-time-in-the-insertion-heads.md" in placed
    assert "reference/modules/oneflow_dist/data/packing.md" in placed


def test_folders_expand_with_their_index_first() -> None:
    uris = ["a/0.md", "a/README.md", "a/b/c.md", "d.md"]
    assert hooks.expand([{"A": "a/"}, "d.md"], uris) == [{"A": ["a/README.md", "a/0.md", {"b": ["a/b/c.md"]}]}, "d.md"]


def test_blocks_get_the_language_that_they_are_in() -> None:
    text = "Say:\n\n    oneflow train x\n\n    make test\n\nand\n\n```\n$ make\n```\n\n    from a import b\n"
    assert hooks.fence(text) == (
        "Say:\n\n```bash\noneflow train x\n\nmake test\n```\n\nand\n\n```console\n$ make\n```\n\n"
        "```python\nfrom a import b\n```\n"
    )


@pytest.mark.parametrize(
    "text", ["- a\n\n    more of a\n", "1. a\n   b\n\n    more of a\n", "```toml\n    x = 1\n```\n"]
)
def test_what_belongs_to_a_list_or_a_fence_stays(text: str) -> None:
    assert hooks.fence(text) == text


def test_keys_and_programs_lead_to_the_reference(files: Files, config: MkDocsConfig) -> None:
    page = Page(None, files.src_uris["docs/data.md"], config)
    names = ("train.steps", "modality.image.patch", "oneflow train", "oneflow nothing", "a.b")
    found = hooks.on_page_content(" ".join(f"<code>{name}</code>" for name in names), page, config, files)
    assert re.findall(r'<a href="([^"]+)"><code>([^<]+)</code></a>', found) == [
        ("../reference/config.html#train.steps", "train.steps"),
        ("../reference/config.html#modality.NAME.patch", "modality.image.patch"),
        ("../reference/command.html#oneflow-train", "oneflow train"),
    ]


def test_nothing_of_the_site_comes_from_another_host(root: Path) -> None:
    said = yaml.safe_load((root / "mkdocs.yml").read_text())
    assert said["theme"]["font"] is False
    for path in [*said["extra"]["polyfills"], *said["extra_css"]]:
        assert "http" not in (root / path).read_text().replace("https://github.com", "")
