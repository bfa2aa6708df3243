"""Is the page of `oneflow serve` what it should be, in a real browser? Starts the server itself; one or two minutes.

    python tests/torture/page.py runs/quickstart --second runs/masked_quickstart
    python tests/torture/page.py runs/quickstart --pictures pictures    and screenshots, one of them moving

Needs playwright and Chromium (CHROMIUM says where; /usr/bin/chromium). The exit code is 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from oneflow_dist.runtime import run_program
from tests.torture.browsing import (
    SEED,
    WATCH,
    Check,
    Server,
    Visit,
    begin,
    check,
    finish,
    record,
    run,
    state_of,
    tab_to,
    tokens,
    write,
)

TOKEN = "a token with <signs> & more"
SMALL = {"width": 390, "height": 844}
SLOW = 600  # steps of a text that is written for some seconds
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>"
FILMED = 8  # a seed whose document counts from one to six


def generation(visit: Visit) -> str:
    """Words appear between others before the end; the document has them where the page has them."""
    with visit.open() as page:
        page.evaluate(WATCH)
        begin(page)
        finish(page)
        status, between = page.inner_text(".status"), page.evaluate("window.between")
        check(between, "no token was seen to appear before another one")
        done = page.evaluate("document.querySelector('.document').textContent")
        check("count up:" in done, f"the prompt is not in {done!r}")
        check(page.locator(".piece img").count() >= 1, "no picture")
        check(all(page.locator(".piece img").evaluate_all("all => all.map((e) => e.alt)")), "a picture without alt")
        check("finished" in page.inner_text("#live"), "nobody is told that it is finished")
        page.locator(".token.made").first.hover()
        check("step" in page.inner_text("#tip"), "no step at a token")
        return f"{between} tokens before others; {status}"


def replaying(visit: Visit) -> str:
    """The slider and the keys show what stood there at a step; play ends at the end."""
    with visit.open() as page:
        final = [token["id"] for token in write(page)]
        end = state_of(page)
        page.locator(".track input").fill("0")
        check(page.locator(".token.made").count() == 0, "something is written at step 0")
        page.locator(".track input").fill(str(end // 2))
        half = [token["id"] for token in tokens(page)]
        check(0 < len(half) <= len(final), "the middle of the replay is empty")
        page.wait_for_timeout(600)  # until what has appeared stands
        visit.shoot(page, "replay.png")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowRight")
        check(state_of(page) == end // 2 + 1, "the right arrow shows no later step")
        page.keyboard.press("Home")
        check(state_of(page) == 0, "Home is not the start")
        page.click(".play")
        page.get_by_role("button", name="Play", exact=True).wait_for()
        check([token["id"] for token in tokens(page)] == final, "the replay ends with another document")
        return f"{end} steps"


def redoing(visit: Visit) -> str:
    """What is not selected stays to the token; what is selected is written anew."""
    with visit.open() as page:
        before = write(page)
        places = [place for place, own in enumerate(before) if own["step"] and not own["modality"]]
        first = page.locator(".token").nth(places[0])
        first.click()
        page.keyboard.press("Shift+ArrowRight")
        chosen = page.locator(".token.selected").count()
        check(chosen == 2, f"{chosen} tokens are selected, not 2")
        page.click("#redo")
        page.wait_for_selector(".columns .column + .column")
        finish(page)
        after = tokens(page, 1)
        stays = [own for place, own in enumerate(before) if place not in (places[0], places[0] + 1)]
        kept = [own for own in after if own["isGiven"]]
        check([own["id"] for own in kept] == [own["id"] for own in stays], "what stays is not the same")
        latents = [[own["latent"] for own in those if own["modality"]] for those in (stays, kept)]
        check(latents[0] == latents[1], "a picture that stays is not the same to the bit")
        visit.shoot(page, "redo.png")
        return f"{len(kept)} tokens kept, {len(latents[1])} of them pictures, the same to the bit"


def bad_picture(visit: Visit) -> str:
    """A file that is no picture is refused by name; the page goes on."""
    visit.expected = ("400",)
    with visit.open() as page, TemporaryDirectory() as folder:
        text, broken = Path(folder) / "notes.txt", Path(folder) / "broken.png"
        text.write_text("nothing to see")
        broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        page.set_input_files("input[type=file]", text)
        page.wait_for_selector("#complaint:visible")
        check("notes.txt" in page.inner_text("#complaint"), "the file is not named")
        page.set_input_files("input[type=file]", broken)
        page.wait_for_selector(".chip img", state="attached")
        page.click("#generate")
        page.wait_for_selector(".column .problem:visible")
        answer = page.inner_text(".column .problem")
        page.click(".chip .remove")
        check(page.locator(".chip").count() == 0, "the chip stays")
        write(page)
        return answer


def given_picture(visit: Visit) -> str:
    """A picture that was made is given again, as it is and as a variation."""
    with visit.open() as page, TemporaryDirectory() as folder:
        write(page)
        picture = Path(folder) / "made.png"
        url = page.locator(".piece img").first.get_attribute("src") or ""
        with urllib.request.urlopen(url) as data:
            picture.write_bytes(data.read())
        page.fill("#prompt", "")
        page.set_input_files("input[type=file]", picture)
        page.click("#generate")
        finish(page)
        check(page.locator(".piece.given").count() == 1, "the given picture is not there")
        page.locator(".chip input[type=checkbox]").check()
        page.click("#generate")
        finish(page)
        check(page.locator(".piece.made").count() >= 1, "the variation is not made")
        return "as it is, and from time 0.5"


def two_users(visit: Visit) -> str:
    """At the same time, with one seed: the same document for both."""
    with visit.open() as first, visit.open() as second:
        begin(first)
        begin(second)
        finish(first)
        finish(second)
        one, other = ([(own["id"], own["step"]) for own in tokens(page)] for page in (first, second))
        check(one == other, f"two documents of one seed differ: {one}, {other}")
        return f"{len(one)} tokens"


def waiting(visit: Visit) -> str:
    """Who comes while others are served is told how many are before."""
    with visit.open() as first, visit.open() as second:
        begin(first, steps=SLOW)
        first.wait_for_selector(".token.made")
        begin(second)
        said = second.locator(".status", has_text=re.compile("before you|next in line")).inner_text()
        first.keyboard.press("Escape")
        finish(second)
        check("stopped" in first.inner_text(".status"), "Escape does not stop")
        return said


def comparison(visit: Visit) -> str:
    """Two settings, or two models, beside each other, and one slider for both."""
    with visit.open() as page:
        page.click("#compare")
        if visit.second:
            page.select_option("#model-b", visit.second)
        else:
            page.locator("#settings-b input[type=number]").first.fill("12")
        write(page)
        check(page.locator(".column").count() == 2, "there are not two columns")
        titles = page.locator(".column h2").all_inner_texts()
        visit.shoot(page, "comparison.png")
        page.locator(".track input").fill("0")
        check(page.locator(".token.made").count() == 0, "one slider does not replay both")
        return " and ".join(titles)


def gallery(visit: Visit) -> str:
    """Documents are still there after a reload, open again, and go when they are deleted."""
    with visit.context() as context:
        page = visit.load(context.new_page())
        final = [own["id"] for own in write(page)]
        write(page, seed=SEED + 1)
        visit.load(page)
        page.wait_for_selector("#gallery li")
        check(page.locator("#gallery li").count() == 2, "there are not the two documents that were written")
        page.locator("#gallery .open").last.click()
        page.wait_for_selector(".token.made")
        check([own["id"] for own in tokens(page)] == final, "another document comes back")
        page.locator("#gallery li .remove").first.click()
        page.locator("#gallery li").nth(1).wait_for(state="detached")
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#gallery h2 button")
        page.wait_for_selector("#gallery", state="hidden")
        return "2 kept, reopened, deleted"


def sharing(visit: Visit) -> str:
    """The file opens without a network, replays, and nothing in it is taken for more than text."""
    with visit.context(accept_downloads=True) as context, TemporaryDirectory() as folder:
        page = visit.load(context.new_page())
        write(page, prompt=HOSTILE)
        check(HOSTILE in page.inner_text(".document"), "the prompt is not shown as text")
        final = [own["id"] for own in tokens(page)]
        with page.expect_download() as download:
            page.click("#share")
        path = Path(folder) / download.value.suggested_filename
        download.value.save_as(path)
        asked: list[str] = []
        with visit.browser.new_context(offline=True) as other:
            shared = other.new_page()
            shared.on("request", lambda request: asked.append(request.url))
            shared.on("pageerror", lambda error: visit.complaints.append(f"shared file: {error}"))
            shared.goto(path.as_uri())
            shared.get_by_role("button", name="Play", exact=True).wait_for()
            check([own["id"] for own in tokens(shared)] == final, "the file ends with another document")
            check("broken" not in shared.title(), "the file runs what is in its text")
            shared.locator(".track input").fill("0")
            check(shared.locator(".token.made").count() == 0, "the file does not replay")
        elsewhere = [url for url in asked if not url.startswith(("file:", "data:"))]
        check(not elsewhere, f"the file asks for {elsewhere}")
        return f"{path.stat().st_size / 1024:.0f} KiB"


def gone(visit: Visit) -> str:
    """A server that is killed in the middle: said so, what has come stays, and the page recovers."""
    visit.expected = ("ERR_", "Failed to load")
    with visit.open() as page:
        begin(page, steps=SLOW)
        page.wait_for_selector(".token.made")
        visit.server.kill()
        page.wait_for_selector(".column .problem:visible")
        said = page.inner_text(".column .problem p")
        check("gone" in said and page.locator(".token.made").count(), f"not told honestly: {said}")
        page.wait_for_selector("#gone:visible")
        visit.server.start()
        page.wait_for_selector("#gone", state="hidden")
        page.get_by_label("steps", exact=True).and_(page.locator("input[type=number]")).first.fill("40")
        write(page)
        return said


def small_screen(visit: Visit) -> str:
    """A telephone: nothing is wider than the screen."""
    with visit.open(viewport=SMALL) as page:
        write(page)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        check(wide <= 0, f"{wide} pixels are beyond the screen")
        page.locator(".document").scroll_into_view_if_needed()
        visit.shoot(page, "small.png")
        return "nothing is wider"


def dark(visit: Visit) -> str:
    """Ink and paper are exchanged, and all is readable."""
    with visit.open(color_scheme="dark") as page:
        write(page)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        check(max(map(int, paper[4:-1].split(", "))) < 64, f"the paper is {paper}")
        visit.shoot(page, "dark.png")
        return paper


def keyboard(visit: Visit) -> str:
    """Without a mouse: to the prompt, to the button, to the words, and through the replay."""
    with visit.open() as page:
        tab_to(page, "#prompt")
        page.keyboard.type("count up:")
        page.keyboard.press("Control+Enter")
        finish(page)
        tab_to(page, ".token")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        check(page.locator(".selected").count() == 2, "shift and an arrow do not select")
        tab_to(page, ".track input")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        check(state_of(page) == 1, "the arrows do not replay")
        return "prompt, words, replay"


def still(visit: Visit) -> str:
    """Who wants no motion gets none."""
    with visit.open(reduced_motion="reduce") as page:
        begin(page)
        page.wait_for_selector(".token.made")
        name = page.evaluate("getComputedStyle(document.querySelector('.token.made')).animationName")
        check(name == "none", f"tokens move: {name}")
        finish(page)
        return "no animation"


def refused(visit: Visit) -> str:
    """A server with a token: asked for once, kept for the tab, and taken out of the address."""
    visit.expected = ("401",)
    with visit.context() as context:
        page = context.new_page()
        page.goto(visit.server.address)
        page.wait_for_selector("#ask[open]")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask[open]")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#generate:enabled")
        write(page)
    with visit.open("/?token=" + urllib.parse.quote(TOKEN)) as page:
        check("token" not in page.url, f"the token stays in {page.url}")
        write(page)
        return "asked for, and taken from the address"


def film(visit: Visit) -> str:
    """Pictures of a page on which something is being written."""
    if visit.pictures is None:
        return "not wanted"
    with visit.open() as page:
        begin(page, seed=FILMED, steps=150)
        page.locator(".token.made").nth(6).wait_for()
        visit.shoot(page, "generating.png")
        finish(page)
    with visit.open(viewport={"width": 880, "height": 560}) as page:
        begin(page, seed=FILMED, steps=150)
        return f"{record(page, visit.pictures / 'generating.gif')} frames"


CHECKS: dict[str, Check] = {
    "generation": generation,
    "replay": replaying,
    "keep this, redo that": redoing,
    "a bad picture": bad_picture,
    "given pictures": given_picture,
    "two users": two_users,
    "comparison": comparison,
    "gallery": gallery,
    "a shared file": sharing,
    "a small screen": small_screen,
    "dark": dark,
    "keyboard only": keyboard,
    "no motion": still,
    "pictures": film,
    "the server is killed": gone,
}


SERVERS: tuple[tuple[dict[str, Check], str, list[str]], ...] = (  # checks, the token of their server, what it is told
    (CHECKS, "", []),
    ({"a queue": waiting}, "", ["--writing", "1"]),
    ({"a token": refused}, TOKEN, []),
)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--second", metavar="RUN", help="another, to compare it with")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="where screenshots go; none otherwise")
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="only checks with one of these in their names")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
    runs = [args.run, *([args.second] if args.second else [])]
    second = Path(args.second).resolve().name if args.second else ""
    with sync_playwright() as playwright:
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        verdicts = []
        for looks, token, words in SERVERS:
            wanted = [name for name in looks if args.only is None or any(text in name for text in args.only)]
            if not wanted:
                continue
            server = Server(*runs, *words, token=token)
            try:
                visit = Visit(browser=browser, server=server, second=second, pictures=args.pictures)
                verdicts += [run(name, visit, looks[name]) for name in wanted]
            finally:
                server.close()
        browser.close()
    sys.exit(not all(verdicts))


if __name__ == "__main__":
    run_program(main)
