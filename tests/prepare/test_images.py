from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare import images
from oneflow_dist.prepare.images import CutPicture, cut_picture
from tests.messages import refused
from tests.prepare import nasty
from tests.prepare.nasty import BLUE, RED, SIDE, SVG, WHITE, Make, halves, store

POLICY = CropPolicy(size=32, multiple_of=4, max_aspect=1.0)
GREEN, MIXED = (30, 220, 20), (40, 20, 210)  # what red and blue are with red and green exchanged
GREY_RED, GREY_BLUE = (86, 86, 86), (53, 53, 53)
TURNED = (images.TURNED,)

# What each is called, how it is made, its extension; what was done to it, and its colour at the left and at the right.
KEPT: dict[str, tuple[Make, str, tuple[str, ...], tuple[int, int, int], tuple[int, int, int]]] = {
    "upright": (lambda: nasty.turned(1), "jpg", (), RED, BLUE),
    "mirrored": (lambda: nasty.turned(2), "jpg", TURNED, BLUE, RED),
    "upside down": (lambda: nasty.turned(3), "jpg", TURNED, BLUE, RED),
    "upside down in a TIFF": (lambda: nasty.turned(3, "TIFF"), "tif", TURNED, BLUE, RED),
    "upside down in a WebP": (lambda: nasty.turned(3, "WEBP"), "webp", TURNED, BLUE, RED),
    "upside down in a PNG": (lambda: nasty.turned(3, "PNG"), "png", TURNED, BLUE, RED),
    "flipped": (lambda: nasty.turned(4), "jpg", TURNED, RED, BLUE),
    "orientation 9": (lambda: nasty.turned(9), "jpg", (images.ODD_TURN,), RED, BLUE),
    "sRGB profile": (lambda: store(halves(), "PNG", icc_profile=nasty.profile()), "png", (), RED, BLUE),
    "other profile": (
        lambda: store(halves(), "PNG", icc_profile=nasty.swapped_profile()),
        "png",
        (images.CONVERTED,),
        GREEN,
        MIXED,
    ),
    "profile and alpha": (
        lambda: store(nasty.with_alpha(None), "PNG", icc_profile=nasty.swapped_profile()),
        "png",
        (images.CONVERTED, images.ON_WHITE),
        GREEN,
        WHITE,
    ),
    "broken profile": (
        lambda: store(halves(), "PNG", icc_profile=b"nonsense"),
        "png",
        (images.BROKEN_PROFILE,),
        RED,
        BLUE,
    ),
    "profile of other pixels": (
        lambda: store(halves(), "PNG", icc_profile=nasty.profile("LAB")),
        "png",
        (images.BROKEN_PROFILE,),
        RED,
        BLUE,
    ),
    "alpha": (lambda: store(nasty.with_alpha(None), "PNG"), "png", (images.ON_WHITE,), RED, WHITE),
    "alpha that hides nothing": (lambda: store(nasty.with_alpha(255), "PNG"), "png", (), RED, BLUE),
    "palette": (lambda: store(halves().quantize(4), "PNG"), "png", (), RED, BLUE),
    "palette with transparency": (nasty.transparent_palette, "png", (images.ON_WHITE,), RED, WHITE),
    "moving GIF": (lambda: nasty.frames("GIF"), "gif", (images.FIRST_FRAME,), RED, BLUE),
    "moving WebP": (lambda: nasty.frames("WEBP"), "webp", (images.FIRST_FRAME,), RED, BLUE),
    "moving PNG": (lambda: nasty.frames("PNG"), "png", (images.FIRST_FRAME,), RED, BLUE),
    "pages of a TIFF": (nasty.pages, "tiff", (images.FIRST_FRAME,), RED, BLUE),
    "16-bit grey": (nasty.deep_grey, "png", (images.SIXTEEN_BITS, images.GREY), (32,) * 3, (224,) * 3),
    "16-bit colour": (nasty.deep_colour, "png", (), RED, BLUE),
    "CMYK": (nasty.cmyk, "jpg", (images.FROM_CMYK,), RED, BLUE),
    "CMYK with a profile of RGB": (
        lambda: nasty.cmyk(True),
        "jpg",
        (images.FROM_CMYK, images.BROKEN_PROFILE),
        RED,
        BLUE,
    ),
    "grey": (lambda: store(halves(mode="L"), "PNG"), "png", (images.GREY,), GREY_RED, GREY_BLUE),
    "grey with alpha": (lambda: store(halves(mode="LA"), "PNG"), "png", (images.GREY,), GREY_RED, GREY_BLUE),
    "progressive": (lambda: store(halves(), "JPEG", progressive=True), "jpg", (), RED, BLUE),
    "JPEG called PNG": (lambda: store(halves(), "JPEG"), "png", (images.OTHER_NAME,), RED, BLUE),
    "GIF": (lambda: store(halves(), "GIF"), "gif", (), RED, BLUE),
    "BMP": (lambda: store(halves(), "BMP"), "bmp", (), RED, BLUE),
    "TIFF": (lambda: store(halves(), "TIFF"), "tif", (), RED, BLUE),
    "AVIF": (lambda: store(halves(), "AVIF"), "avif", (), RED, BLUE),
    "two pictures of a phone": (
        lambda: store(halves(), "MPO", save_all=True, append_images=[halves()]),
        "jpg",
        (images.FIRST_FRAME,),
        RED,
        BLUE,
    ),
    "smaller than the size": (lambda: store(halves(16, 16), "PNG"), "png", (images.ENLARGED,), RED, BLUE),
    "8 to 1": (lambda: store(halves(320, 40), "PNG"), "png", (), RED, BLUE),
    "one colour": (
        lambda: store(Image.new("RGB", (SIDE, SIDE), RED), "PNG"),
        "png",
        (images.ONE_COLOUR,),
        RED,
        RED,
    ),
}

REFUSED: dict[str, tuple[Make, str]] = {
    "nothing": (bytes, "is empty"),
    "cut JPEG": (lambda: nasty.cut(store(halves(640, 640), "JPEG"), 0.9), "is broken"),
    "cut PNG": (lambda: nasty.cut(store(halves(), "PNG")), "is broken"),
    "cut GIF": (lambda: nasty.cut(nasty.frames("GIF"), 0.2), "is broken"),
    "cut BMP": (lambda: nasty.cut(store(halves(), "BMP")), "is broken"),
    "cut TIFF": (lambda: nasty.cut(store(halves(), "TIFF")), "is broken"),
    "cut WebP": (lambda: nasty.cut(store(halves(), "WEBP")), "is no readable picture"),
    "cut AVIF": (
        lambda: nasty.cut(store(halves(), "AVIF")),
        "is of a kind that is not read (a film, or a damaged AVIF)",
    ),
    "bad checksum": (nasty.bad_checksum, "is broken"),
    "a million squared": (nasty.bomb, "has too many pixels"),
    "compressed text": (nasty.text_bomb, "is no readable picture"),
    "one pixel": (lambda: store(halves(1, 1), "PNG"), "is too small"),
    "10 to 1": (lambda: store(halves(200, 20), "PNG"), "is too long for its width"),
    "transparent": (lambda: store(nasty.with_alpha(0), "PNG"), "is transparent all over"),
    "real numbers": (nasty.floats, "has pixels that are not read"),
    "LAB": (nasty.lab, "has pixels that are not read"),
    "text": (lambda: b"not a picture\n", "is text, no picture"),
    "page": (lambda: b"<!DOCTYPE html><html></html>", "is of a kind that is not read (a page of HTML)"),
    "SVG": (lambda: SVG, "is of a kind that is not read (an SVG)"),
    "HEIC": (lambda: nasty.HEIC, "is of a kind that is not read (a HEIC)"),
    "PSD": (lambda: b"8BPS" + bytes(64), "is of a kind that is not read (a PSD)"),
    "PDF": (lambda: b"%PDF-1.7", "is of a kind that is not read (a PDF)"),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0", "is of a kind that is not read (a PostScript file)"),
    "JPEG XL": (lambda: b"\xff\x0a" + bytes(64), "is of a kind that is not read (a JPEG XL)"),
    "icon": (lambda: b"\0\0\1\0" + bytes(64), "is of a kind that is not read (an icon)"),
    "noise": (lambda: bytes(range(100, 250)) * 9, "is no readable picture"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_made_of_each_kind_of_picture(name: str) -> None:
    make, extension, done, left, right = KEPT[name]
    picture = cut_picture(make(), extension, POLICY)
    assert picture.done == done
    assert (picture.cut.mode, picture.cut.size) == ("RGB", (32, 32))
    assert is_near(picture, 4, left)
    assert is_near(picture, 27, right)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_said_of_each_kind_of_file_that_is_not_used(name: str) -> None:
    make, reason = REFUSED[name]
    assert refused(cut_picture, make(), "png", POLICY).startswith(reason)


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_picture_on_its_side_is_turned_once(turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[nasty.ORIENTATION] = turn
    content = store(halves(96, 48), kind, exif=exif, quality=95)
    picture = cut_picture(
        content, "jpg" if kind == "JPEG" else "tif", CropPolicy(size=32, multiple_of=4, max_aspect=2.0)
    )
    assert (picture.width, picture.height) == (48, 96)
    assert picture.cut.height > picture.cut.width
    top = RED if turn in (5, 6) else BLUE
    assert all(abs(a - b) < 8 for a, b in zip(picture.cut.getpixel((8, 4)), top, strict=True))  # type: ignore[arg-type]


def test_a_cut_picture_has_the_same_bytes_each_time() -> None:
    content = store(halves(), "JPEG")
    assert cut_picture(content, "jpg", POLICY).encode() == cut_picture(content, "jpg", POLICY).encode()


def is_near(picture: CutPicture, x: int, colour: tuple[int, int, int]) -> bool:
    found = picture.cut.getpixel((x, 16))
    assert isinstance(found, tuple)
    return all(abs(own - wanted) <= 5 for own, wanted in zip(found, colour, strict=True))


@pytest.mark.parametrize(("width", "height"), [(40, 10), (10, 40), (24, 16)])
def test_a_cut_out_is_padded_with_white_and_nothing_of_it_is_lost(width: int, height: int) -> None:
    with Image.new("RGBA", (width, height), (200, 0, 0, 255)) as picture:
        picture.putpixel((0, 0), (0, 0, 0, 0))
        content = store(picture, "PNG")
    cut = cut_picture(content, "png", POLICY)
    assert images.PADDED in cut.done
    pixels = np.asarray(cut.cut).astype(int)
    is_red = pixels[:, :, 1] < 100
    side = POLICY.size
    assert is_red.any(axis=1).sum() == pytest.approx(side * min(1, height / width), abs=1)
    assert is_red.any(axis=0).sum() == pytest.approx(side * min(1, width / height), abs=1)


def test_an_opaque_picture_is_cut_and_not_padded() -> None:
    with Image.new("RGB", (40, 10), (200, 0, 0)) as picture:
        cut = cut_picture(store(picture, "PNG"), "png", POLICY)
    assert images.PADDED not in cut.done
    assert (np.asarray(cut.cut)[:, :, 1] < 100).all()
