from __future__ import annotations

from pathlib import Path

from oneflow_dist.prepare.items import Blob, Source
from oneflow_dist.prepare.pages import pages_of, read_pages
from tests.messages import names, refused
from tests.prepare.making import PNG, data_url, problems_of, shown, write_folder


def documents_of(source: Source) -> dict[str, list[str]]:
    return {item.name: shown(item.parts) for item in source.items if item.problem is None}


def test_pages_become_documents_in_reading_order(tmp_path: Path) -> None:
    files = {
        "train/owls.html": "<h1>Owls</h1><p>Hunters.</p><img src='../img/owl.png' alt='an owl'><p>End.</p><p>Yes.</p>",
        "b/b.md": "# Cod\n\n![](/img/cod%201.png)\n",
        "img/owl.png": PNG,
        "img/cod 1.png": PNG,
        "img/unused.png": PNG,
        "style.css": "",
    }
    source = read_pages(write_folder(tmp_path, files))
    assert documents_of(source) == {
        "b/b.md": ["Cod", "<img/cod 1.png>"],
        "train/owls.html": ["Owls\n\nHunters.", "<img/owl.png>", "an owl\n\nEnd.\n\nYes."],
    }
    assert source.items[1].fields == {"split": "train"}
    assert source.unread == {"png": 1, "css": 1}


def test_a_picture_that_cannot_be_shown_is_a_problem_of_its_own(tmp_path: Path) -> None:
    page = """<p>Owls</p><img src="gone.png" alt="not placed"><img src="http://example.org/a.png">
    <img src="../secret.png"><img src="data:image/png;base64,*"><img><p>End</p>"""
    (tmp_path / "secret.png").write_bytes(PNG)
    source = read_pages(write_folder(tmp_path / "in", {"a.html": page}))
    assert documents_of(source) == {"a.html": ["Owls\n\nEnd"]}
    problems = problems_of(source)
    assert list(problems) == [f"a.html, picture {number}" for number in range(1, 6)]
    assert names(problems["a.html, picture 1"], "'gone.png'")
    assert names(problems["a.html, picture 2"], "'http://example.org/a.png'")
    assert names(problems["a.html, picture 3"], "'../secret.png'")


def test_a_picture_may_be_spelled_out(tmp_path: Path) -> None:
    (item,) = read_pages(write_folder(tmp_path, {"a.html": f"<p>x</p><img src='{data_url(PNG)}'>"})).items
    blob = item.parts[1]
    assert isinstance(blob, Blob)
    assert (blob.name, blob.read()) == ("a.html, picture 1", PNG)


def test_icons_and_drawings_are_counted(tmp_path: Path) -> None:
    page = """<p>x</p><img src="a.png" width="15" height="40"><img src="http://example.org/1.gif" height="1px">
    <img src="b.svg"><img src="http://example.org/c.svg?x"><img src="data:image/svg+xml,x">
    <img src="a.png" width="16">"""
    source = read_pages(write_folder(tmp_path, {"a.html": page, "a.png": PNG, "b.svg": ""}))
    assert documents_of(source) == {"a.html": ["x", "<a.png>"]}
    assert source.unread == {"tiny picture": 2, "svg": 3}


def test_pages_about_the_folder_are_read_only_where_they_are_all(tmp_path: Path) -> None:
    about = {"README.md": "about", "LICENSE.md": "x", "docs/README.de.md": "x"}
    assert documents_of(read_pages(write_folder(tmp_path / "a", {**about, "owls.md": "Owls"}))) == {"owls.md": ["Owls"]}
    alone = write_folder(tmp_path / "b", {"README.md": "about"})
    assert pages_of(alone) == []
    assert documents_of(read_pages(alone)) == {"README.md": ["about"]}


def test_an_empty_page_is_a_problem(tmp_path: Path) -> None:
    source = read_pages(write_folder(tmp_path, {"a.html": "<script>x</script>", "b.html": b"<p>K\xe4uzchen"}))
    assert list(problems_of(source)) == ["a.html"]
    assert documents_of(source) == {"b.html": ["Käuzchen"]}
    assert ".html" in refused(read_pages, write_folder(tmp_path / "none", {"a.png": PNG}))
