"""A picture of unknown origin, as cameras, editors and the web leave them, becomes RGB pixels of a bucket's size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageCms, features

from oneflow_dist.data import picture as pictures
from oneflow_dist.data.picture import MAX_PIXELS, ORIENTATION, SIDEWAYS, TURNS, check_sums
from oneflow_dist.precompute.crop import REDUCING_GAP, CropPolicy, cover_scale, crop_to, nearest_bucket

# Readers of Pillow's that decode in this process and nothing else: none of these starts a program, as its EPS does.
FORMATS = (*pictures.FORMATS, "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
BROKEN = (*pictures.BROKEN, RuntimeError)  # that is what Pillow's AVIF raises
EXTENSIONS = {"JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"), "TIFF": ("tif", "tiff"), "PNG": ("png", "apng")}
MAX_ASPECT = 8.0  # of a picture: cut to a bucket, next to nothing of a longer one would be left
MIN_SIDE = 4  # pixels; what is smaller counts visitors and shows nothing
GREY_MODES = ("1", "L", "LA", "La")
MODES = (*GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16L", "I;16B")
MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of colour profiles
SRGB = ImageCms.createProfile("sRGB")
SNIFFED_BYTES = 1024
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
SIGNATURES = {  # how files begin that are no pictures, or pictures that are not read
    b"8BPS": "a PSD",
    b"%PDF": "a PDF",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\1\0": "an icon",
    b"%!PS": "a PostScript file",
    b"PK\3\4": "a ZIP archive",
    b"version https://git-lfs": "a pointer of Git LFS",
}

# What was done to a picture, as the summary counts it.
TURNED = "turned as their EXIF says"
ODD_TURN = "left as they lie, their EXIF says no known turn"
CONVERTED = "converted from their colour profile to sRGB"
BROKEN_PROFILE = "taken as sRGB, their colour profile is broken"
ON_WHITE = "laid on white, parts are transparent"
FIRST_FRAME = "of several frames, the first was taken"
SIXTEEN_BITS = "of 16 bits, the upper 8 were taken"
FROM_CMYK = "converted from CMYK"
GREY = "grey, made RGB"
ENLARGED = "enlarged, they are smaller than the size"
OTHER_NAME = "of another format than their name says"
PADDED = "of those padded with white, not cut: a cut-out ends where its thing ends"
ONE_COLOUR = "of one colour all over, kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPicture:
    """A picture that is ready to be trained on."""

    whole: Image.Image  # RGB, upright; of a JPEG no larger than cutting needs
    cut: Image.Image  # to its bucket
    width: int  # of all of it, upright
    height: int
    done: tuple[str, ...]  # what was done to it

    def encode(self) -> bytes:
        """The cut picture as a PNG; the same bytes with the same Pillow."""
        buffer = io.BytesIO()
        self.cut.save(buffer, "PNG", compress_level=6)
        return buffer.getvalue()


def cut_picture(content: bytes, extension: str, policy: CropPolicy) -> CutPicture:
    """Decode a picture, turn it upright, take it to sRGB on white, and cut it to its bucket.

    Args:
        extension: that its name has, in small letters without the dot; only compared.

    Raises:
        ValueError: why it cannot be used; values stand in brackets.
    """
    if not content:
        raise ValueError("is empty (0 bytes)")
    with warnings.catch_warnings():  # Pillow warns of broken EXIF and the like, which we count ourselves
        warnings.simplefilter("ignore")
        return _cut(content, extension, policy)


def _cut(content: bytes, extension: str, policy: CropPolicy) -> CutPicture:
    done = []
    with _open(content) as picture:
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
        _check_size(*picture.size)
        if extension not in EXTENSIONS.get(kind, (kind.lower(),)):
            done.append(OTHER_NAME)
        with _naming_damage():
            if kind == "PNG":
                check_sums(content)
            if getattr(picture, "is_animated", False):
                done.append(FIRST_FRAME)
                picture.seek(0)
            turn = _find_turn(picture, done)
            has_turned = kind == "TIFF"  # Pillow turns these as it loads them, and tells the sides that they will have
            width, height = picture.size[::-1] if turn in SIDEWAYS and not has_turned else picture.size
            scale = REDUCING_GAP * cover_scale(nearest_bucket(policy, height, width), height, width)
            picture.draft("RGB", (-int(-scale * picture.width), -int(-scale * picture.height)))
            picture.load()
            upright = picture.transpose(TURNS[turn]) if turn in TURNS and not has_turned else picture
        whole = _to_srgb(upright, kind, picture.info.get("icc_profile"), done)
    bucket = nearest_bucket(policy, height, width)
    if ON_WHITE in done and whole.width * bucket[0] != whole.height * bucket[1]:
        whole = pad_to(whole, bucket)
        height, width = whole.height, whole.width
        done.append(PADDED)
    if cover_scale(bucket, height, width) > 1:
        done.append(ENLARGED)
    cut = crop_to(whole, bucket)
    if all(low == high for low, high in cut.getextrema()):  # type: ignore[misc]  # RGB has a pair for each channel
        done.append(ONE_COLOUR)
    return CutPicture(whole=whole, cut=cut, width=width, height=height, done=tuple(done))


def pad_to(picture: Image.Image, bucket: tuple[int, int]) -> Image.Image:
    """A picture in the middle of a white one that has the aspect of a bucket (height, width)."""
    height, width = bucket
    sides = (
        max(picture.width, -(-picture.height * width // height)),
        max(picture.height, -(-picture.width * height // width)),
    )
    padded = Image.new("RGB", sides, "white")
    padded.paste(picture, ((sides[0] - picture.width) // 2, (sides[1] - picture.height) // 2))
    return padded


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"is broken ({error})") from error


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except BROKEN as error:
        raise ValueError(_describe_unread(content)) from error


def _describe_unread(content: bytes) -> str:
    """What it is that no reader takes."""
    head = content[:SNIFFED_BYTES]
    what = next((what for start, what in SIGNATURES.items() if head.startswith(start)), "")
    lower = head.lower()
    if head[4:8] == b"ftyp":
        what = "a HEIC" if head[8:12] in HEIC_BRANDS else "a film, or a damaged AVIF"
    elif b"<svg" in lower:
        what = "an SVG"
    elif b"<html" in lower or b"<!doctype html" in lower:
        what = "a page of HTML"
    if what:
        return f"is of a kind that is not read ({what}); save it as PNG or JPEG"
    if head.isascii() and b"\0" not in head:
        return "is text, no picture"
    return "is no readable picture, or its head is damaged"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"has too many pixels ({width}x{height}, at most {MAX_PIXELS} are read)")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"is too small (a side of {min(width, height)} pixels, at least {MIN_SIDE} are needed)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"is too long for its width ({width}x{height}, more than {MAX_ASPECT:g} to 1)")


def _find_turn(picture: Image.Image, done: list[str]) -> int:
    """How the camera was held, as EXIF numbers it; upright where that is unreadable."""
    try:
        turn = int(picture.getexif().get(ORIENTATION, 1))
    except (*BROKEN, TypeError):
        turn = 0
    if turn in TURNS:
        done.append(TURNED)
    elif turn != 1:
        done.append(ODD_TURN)
    return turn


def _to_srgb(picture: Image.Image, kind: str, profile: bytes | None, done: list[str]) -> Image.Image:
    """RGB pixels, what is transparent on white."""
    is_deep = picture.mode.startswith("I") and (picture.mode != "I" or kind == "PNG")
    if picture.mode not in MODES and not is_deep:
        raise ValueError(f"has pixels that are not read (of the kind {picture.mode})")
    if is_deep:
        done.append(SIXTEEN_BITS)
        picture = pictures.put_on_white(picture, "L")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if alpha is not None and alpha.getextrema()[1] == 0:
        raise ValueError("is transparent all over")
    if picture.mode in GREY_MODES:
        done.append(GREY)
        opaque = picture.convert("L")
    elif picture.mode == "CMYK":
        done.append(FROM_CMYK)
        opaque = picture
    else:
        opaque = picture.convert("RGBA" if alpha else "RGB").convert("RGB")
    colours = _apply_profile(opaque, profile, done)
    if alpha is None or alpha.getextrema()[0] == 255:
        return colours
    done.append(ON_WHITE)
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _apply_profile(picture: Image.Image, content: bytes | None, done: list[str]) -> Image.Image:
    """A picture in RGB, L or CMYK as RGB, with the colours that its profile means; without one it is sRGB."""
    if not content:
        return picture.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        mode = MODE_OF_SPACE.get(profile.profile.xcolor_space.strip(), "")
        if mode == "RGB" and picture.mode == "L":
            picture = picture.convert("RGB")
        if mode != picture.mode:
            raise ValueError("a profile of other pixels")
        if "sRGB" in (profile.profile.profile_description or ""):
            return picture.convert("RGB")
        converted = ImageCms.profileToProfile(picture, profile, SRGB, outputMode="RGB")
    except (*BROKEN, ImageCms.PyCMSError, TypeError, AttributeError):
        done.append(BROKEN_PROFILE)
        return picture.convert("RGB")
    done.append(CONVERTED)
    assert converted is not None, "a picture that is not changed in place"
    return converted
