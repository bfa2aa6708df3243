from __future__ import annotations

import pytest

from oneflow_dist.prepare.markup import PageReader, PictureTag, decode_data, page_of_html, page_of_markdown
from tests.messages import refused
from tests.prepare.making import PNG, data_url


def read_html(page: str, encoding: str = "utf-8") -> list[str]:
    return [
        part if isinstance(part, str) else f"<{part.source}>"
        for part in PageReader(page_of_html(page.encode(encoding))).parts
    ]


def read_markdown(page: str) -> list[str]:
    return [part if isinstance(part, str) else f"<{part.source}>" for part in PageReader(page_of_markdown(page)).parts]


def test_what_a_person_reads_of_a_page() -> None:
    page = """
    <html><head><title>Not read: there is a heading</title><style>p {}</style></head><body>
    <header><a href="/">Site</a></header><nav>Menu</nav>
    <article><header><h1>Owls &amp; <i>hawks</i></h1></header>
      Loose text
      <p>They <b>hunt</b>&nbsp;at
         night.<br>Always.</p><!-- a comment --><script>alert(1)</script>
      <img src="owl.png"><p>After<img src="cod.png">inside</p>
      <ul><li>one</li><li>two <ul><li>deep</li></ul></li></ul>
      <ol start="3"><li><p>three</p></li><li>four</li></ol>
      <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
      <pre>
  x = 1
    y</pre>
      <p hidden>Not shown</p><p aria-hidden="true">Nor this</p>
    </article><footer>Imprint</footer></body></html>
    """
    assert read_html(page) == [
        "Owls & hawks",
        "Loose text",
        "They hunt at night.\nAlways.",
        "<owl.png>",
        "After",
        "<cod.png>",
        "inside",
        "- one\n- two\n- deep",
        "3. three\n4. four",
        "a | b\n1 | 2",
        "  x = 1\n    y",
    ]


def test_the_title_stands_in_for_a_missing_heading() -> None:
    assert read_html("<title>Owls</title><h2>Food</h2><p>Mice</p>") == ["Owls", "Food", "Mice"]


def test_a_page_may_be_nested_without_end() -> None:
    assert read_html("<div>" * 20_000 + "deep") == ["deep"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_encodings_without_a_declaration(encoding: str) -> None:
    assert read_html("<p>Käuzchen &eacute;&#228;</p>", encoding) == ["Käuzchen éä"]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("iso-8859-1", "cp1252"),
        ("windows-1251", "windows-1251"),
        ("shift_jis", "shift_jis"),
        ("utf-16", "utf-8"),
        ("x-no", "utf-8"),
    ],
)
def test_declared_encodings(declared: str, encoding: str) -> None:
    text = {"windows-1251": "сова", "shift_jis": "ふくろう"}.get(encoding, "“Käuzchen”")
    assert read_html(f'<meta charset="{declared}"><p>{text}</p>', encoding) == [text]


def test_markdown() -> None:
    page = """---
title: settings of a site
---
# Owls

They *hunt* at
night &amp; day. ![an owl](owl%20one.png "title")

<figure><img src="cod.png"><figcaption>A cod.</figcaption></figure>

1. one
2. two

| a | b |
|---|---|
| 1 | 2 |
"""
    assert read_markdown(page.replace("\n", "\r\n")) == [
        "Owls",
        "They hunt at night & day.",
        "<owl%20one.png>",
        "<cod.png>",
        "A cod.",
        "1. one\n2. two",
        "a | b\n1 | 2",
    ]


@pytest.mark.parametrize(
    ("tag", "picture"),
    [
        ('<img src="a.png" alt=" an\n owl ">', PictureTag("a.png", "an owl", None, None)),
        ('<img data-src="a.png" width="20px" height="8">', PictureTag("a.png", "", 20, 8)),
        ('<img src="a.png" width="100%" height="auto">', PictureTag("a.png", "", None, None)),
        ("<img>", PictureTag("", "", None, None)),
        ('<figure><img src="a.png" alt="x"></figure>', PictureTag("a.png", "x", None, None)),
        ('<figure><img src="a.png" alt="x"><figcaption>y</figcaption></figure>', PictureTag("a.png", "", None, None)),
    ],
)
def test_pictures_as_they_are_written(tag: str, picture: PictureTag) -> None:
    assert PageReader(page_of_html(tag.encode())).parts[0] == picture


def test_pictures_that_are_spelled_out() -> None:
    assert decode_data(data_url(PNG)) == PNG
    assert decode_data("data:image/gif,GIF89a%00") == b"GIF89a\0"
    assert decode_data(data_url(PNG).replace("iVBO", "iV\n BO")) == PNG


@pytest.mark.parametrize(
    "address", ["data:image/png;base64", "data:text/html,x", "data:image/png;base64,*", "data:image/png;base64,abc"]
)
def test_broken_addresses_of_data(address: str) -> None:
    assert "data:" in refused(decode_data, address)
