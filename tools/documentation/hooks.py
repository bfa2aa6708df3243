"""The repository as a site, for mkdocs: pages lie where their files do, so every link between them leads on."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from oneflow_dist.command import COMMANDS
from tools.documentation.reference import config_page, key_anchors, module_pages, programs_page

ROOT = Path(__file__).parents[2]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md")  # documents that are not in docs/
PACKAGES = {"oneflow_dist": ROOT, "oneflow_kernels": ROOT / "kernels"}
KEYS, PROGRAMS, MODULES = "reference/config.md", "reference/command.md", "reference/modules"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {
    r"\$ ": "console",
    r"(?:[A-Z_]+=\S+ )*(?:oneflow|python3?|torchrun|make|pip3?|pytest|git|source|nvidia-smi|srun|sbatch|docker|podman"
    r"|apptainer|(?:launch|tools|tests|\.venv|\.ci)/\S+)\s": "bash",
    r"(?:from|import) ": "python",
    r"\[": "toml",
    r"sources:|[\w-]+:$": "yaml",
    r"\{": "json",
    r"(?:--- |diff )": "diff",
}
SUFFIXES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash"}
ENDS = ("", ".md", "/README.md")  # of the page of a file or of a folder
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n(?:\n+(?= {4}))?)+")
NAMED = re.compile(r'(?<!">)<code>([a-z_]+(?:\.[\w*]+)+|oneflow [a-z]+)</code>(?!</a>)')
SOURCE = '<details class="mkdocstrings-source">'
ANCHORS = key_anchors()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages there are: of the theme as they are, documents at their paths in the repository, and what is made."""
    documents = Path(config.docs_dir)
    own = [file for file in files if file.abs_src_path and documents in Path(file.abs_src_path).parents]
    for file in own:
        files.remove(file)
        files.append(_from(f"{documents.name}/{file.src_uri}", config))
    for path in BESIDE:
        files.append(_from(path, config))
    made = {KEYS: config_page(), PROGRAMS: programs_page()}
    made |= {f"{MODULES}/{uri}": text for uri, text in module_pages(PACKAGES).items()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    add_linked(files, config)
    config.nav = expand(config.nav, sorted(files.src_uris))
    return files


def _from(path: str, config: MkDocsConfig, inclusion: InclusionLevel = InclusionLevel.UNDEFINED) -> File:
    """A file of the repository, at its path."""
    return File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=inclusion)


def add_linked(files: Files, config: MkDocsConfig) -> None:
    """All that documents link to and that does not lie in docs/: other documents, what these link to, source."""
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for link, _ in LINK.findall(page.content_string):
            target = target_of(link, page.src_uri)
            target += "/README.md" if (ROOT / target / "README.md").is_file() else ""
            if not files.src_uris.keys().isdisjoint(f"{target}{end}" for end in ENDS) or not (ROOT / target).exists():
                continue
            if (ROOT / target).is_dir():
                made = _made(f"{target}/README.md", folder_page(target, files), config)
            elif Path(target).suffix in SUFFIXES:
                made = _made(f"{target}.md", source_page(target), config)
            else:
                made = _from(target, config, InclusionLevel.NOT_IN_NAV)
            files.append(made)
            waiting += [made] if made.is_documentation_page() else []


def _made(uri: str, text: str, config: MkDocsConfig) -> File:
    """A page that only links lead to."""
    return File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def target_of(link: str, uri: str) -> str:
    """What a link of a page leads to, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(uri), link))


def source_page(path: str) -> str:
    """A file of the repository as it is; search leaves it out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = SUFFIXES.get(Path(path).suffix, "text")
    return f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n``````{language}\n{text}``````\n"


def folder_page(folder: str, files: Files) -> str:
    """What lies in a folder of the repository: documents by their titles, modules as the reference has them."""
    lines = [f"# {folder}", ""]
    for path in sorted((ROOT / folder).iterdir()):
        uri = f"{folder}/{path.name}"
        module = f"{MODULES}/{uri.removesuffix('.py')}.md"
        if path.suffix == ".md":
            lines.append(f"- [{title_of(path)}]({path.name})")
        elif module in files.src_uris:
            lines.append(f"- [{path.name}]({posixpath.relpath(module, folder)})")
        elif uri in files.src_uris:
            lines.append(f"- [{path.name}]({path.name})")
    return "\n".join([*lines, ""])


def title_of(path: Path) -> str:
    """The first heading of a document."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def expand(nav: Any, uris: list[str]) -> Any:
    """The navigation, with all pages of a folder where an entry ends with a slash; folders within it are sections."""
    if isinstance(nav, list):
        return [expand(entry, uris) for entry in nav]
    if isinstance(nav, dict):
        return {title: expand(entry, uris) for title, entry in nav.items()}
    if not nav.endswith("/"):
        return nav
    inner = [uri for uri in uris if uri.startswith(nav) and uri.endswith(".md")]
    pages = [uri for uri in inner if "/" not in uri.removeprefix(nav)]
    folders = dict.fromkeys(uri.removeprefix(nav).partition("/")[0] for uri in inner if uri not in pages)
    pages.sort(key=lambda uri: not uri.endswith("/README.md"))
    return [*pages, *({name: expand(f"{nav}{name}/", uris)} for name in folders)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what is no document lead to the page of it; blocks have the language that they are in."""
    if page.file.abs_src_path is None:  # made, with links and languages as they should be
        return markdown

    def lead(link: re.Match[str]) -> str:
        target = target_of(link[1], page.file.src_uri)
        suffix = next((end for end in ENDS if f"{target}{end}" in files.src_uris), "")
        return f"{link[1].rstrip('/')}{suffix}{link[2] or ''}"

    return fence(LINK.sub(lead, markdown))


def fence(markdown: str) -> str:
    """Indented blocks as fenced ones, and all of them with a language; those within lists stay as they are."""

    def fenced(block: re.Match[str]) -> str:
        before = block.string[: block.start()].rstrip().rpartition("\n\n")[2]
        if re.match(r"\s*(?:[-*]|\d+\.) ", before):
            return block[0]
        text = re.sub(r"^ {4}", "", block[0], flags=re.MULTILINE)
        return f"```{language_of(text)}\n{text}```\n"

    parts = FENCED.split(markdown)
    parts[::2] = [INDENTED.sub(fenced, part) for part in parts[::2]]
    parts[1::2] = [re.sub(r"\A```\n", f"```{language_of(part[4:])}\n", part) for part in parts[1::2]]
    return "".join(parts)


def language_of(text: str) -> str:
    """Of a block, by how it begins."""
    return next((name for start, name in LANGUAGES.items() if re.match(start, text)), "text")


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keys of the config and programs lead to what the reference says of them; search leaves out source."""
    content = content.replace(SOURCE, f"{SOURCE[:-1]} data-search-exclude>")
    if page.file.src_uri in (KEYS, PROGRAMS):
        return content

    def lead(code: re.Match[str]) -> str:
        words = code[1].split()
        key = re.sub(r"^modality\.(?:\w+|\*)\.", "modality.", code[1])
        if key in ANCHORS:
            address = f"{_url(files, KEYS, page)}#{ANCHORS[key]}"
        elif words[0] == "oneflow" and words[1] in COMMANDS:
            address = f"{_url(files, PROGRAMS, page)}#{'-'.join(words)}"
        else:
            return code[0]
        return f'<a href="{address}">{code[0]}</a>'

    return NAMED.sub(lead, content)


def _url(files: Files, uri: str, page: Page) -> str:
    """From a page to another one."""
    return get_relative_url(files.src_uris[uri].url, page.url)
