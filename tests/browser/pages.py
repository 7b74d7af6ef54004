#!/usr/bin/env python3
"""Opens report pages in Chromium and checks what a reader relies on.

    python3 -m venv /tmp/browser && /tmp/browser/bin/pip install playwright     # the driver only
    /tmp/browser/bin/python tests/browser/pages.py PAGE.html ... [--screenshots DIR]

`results-page.txt` is what it printed for `docs/results/index.html`; `run-pages.txt`, `comparison-page.txt` and `paloma-page.txt` for the pages of a run, of four runs
and of an evaluation in PALOMA's shape, with all 571 rows of Table 10:

    target/release/examples/loopback_hub target/release/xlstm-data prepare paloma --split val --out data/paloma-shaped
    target/release/xlstm-eval paloma runs/demo --manifest data/paloma-shaped/validation

The browser is the system's (`apt-get install chromium`, or CHROMIUM=/path). For each page, at desktop and phone width, in
light and dark, and once with scripts off:

  - no request leaves the page, and nothing is written to the console;
  - the page itself never scrolls sideways; wide tables scroll in their own box, which the keyboard can reach;
  - headings do not skip a level, every table has a caption and column scopes, every plot a name and a description;
  - every link leads to a part of the page, or to a file beside it, that is there, and ids are unique;
  - text has a contrast of at least 4.5 (WCAG 2.1 AA) against its background;
  - a click and a key on a column's head sort by it, and `aria-sort` says so; the search field filters;
  - it is interactive within a second, and under 5 MB.

Prints one line for each check and ends with 1 when one failed.
"""

import argparse
import os
import pathlib
import shutil
import sys
import time
import urllib.parse

from playwright.sync_api import sync_playwright

VIEWS = [("desktop", 1280, 900), ("phone", 360, 740), ("phone of 390", 390, 844)]

STRUCTURE = """() => {
  const wrong = [];
  let level = 0;
  document.querySelectorAll('h1,h2,h3,h4').forEach((h) => {
    const now = Number(h.tagName[1]);
    if (now > level + 1) wrong.push(`heading skips a level: ${h.textContent}`);
    level = now;
  });
  document.querySelectorAll('table').forEach((t) => {
    if (!t.caption || !t.caption.textContent.trim()) wrong.push('a table without caption');
    if ([...t.tHead.rows[0].cells].some((c) => c.scope !== 'col')) wrong.push('a column head without scope');
    const box = t.closest('.scroll');
    if (!box || box.tabIndex !== 0) wrong.push('a table outside a box that the keyboard reaches');
    const columns = t.tHead.rows[0].cells.length;
    if ([...t.tBodies[0].rows].some((r) => r.cells.length !== columns)) wrong.push(`a row of another length: ${t.caption.textContent}`);
  });
  document.querySelectorAll('svg[role=img]').forEach((s) => {
    if (!s.getAttribute('aria-label') || !s.querySelector('desc')?.textContent) wrong.push('a plot without words');
  });
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push('ids that occur twice');
  document.querySelectorAll('a').forEach((a) => {
    const to = a.getAttribute('href');
    // Files beside the page are looked for on the disk.
    if (!to.startsWith('./') && (!to.startsWith('#') || !document.getElementById(to.slice(1)))) wrong.push(`a link to nowhere: ${to}`);
  });
  if (!document.documentElement.lang || !document.title) wrong.push('no language or title');
  return wrong;
}"""

CONTRAST = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => {
    const part = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [255, 255, 255, 1];
  };
  let lowest = [99, ''];
  document.querySelectorAll('h1,h2,h3,h4,p,dt,dd,th,td,caption,a,button,summary,figcaption,text,code,label,output').forEach((e) => {
    if (!e.textContent.trim()) return;
    const style = getComputedStyle(e);
    const color = parse(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, `${e.tagName} ${e.className.baseVal ?? e.className}: ${e.textContent.slice(0, 40)}`];
  });
  return lowest;
}"""


class Checks:
    def __init__(self):
        self.failed = 0

    def __call__(self, good, what):
        print(("ok      " if good else "FAILED  ") + what)
        self.failed += not good


def sort_and_filter(page, check, name):
    # The longest one with numbers that is not folded away.
    marked = page.evaluate(
        "() => { const t = [...document.querySelectorAll('table[data-sortable]')]"
        ".filter((t) => t.querySelector('th.number') && !t.closest('details:not([open])')); "
        "t.reduce((a, b) => (b.rows.length > a.rows.length ? b : a), t[0])?.setAttribute('data-longest', ''); return t.length; }"
    )
    if marked == 0:
        return
    table = page.locator("table[data-longest]")
    head = table.locator("thead th.number").first
    column = head.evaluate("(e) => e.cellIndex")
    values = lambda: table.evaluate(
        "(t, c) => [...t.tBodies[0].rows].map((r) => r.cells[c].dataset.v).filter((v) => v !== undefined).map(Number)", column
    )
    button = head.locator("button")
    start = time.monotonic()
    button.click()
    took = time.monotonic() - start
    check(values() == sorted(values()) and head.get_attribute("aria-sort") == "ascending", f"{name}: a click sorts ({took * 1000:.0f} ms)")
    button.focus()
    page.keyboard.press("Enter")
    check(
        values() == sorted(values(), reverse=True) and head.get_attribute("aria-sort") == "descending",
        f"{name}: the Enter key sorts the other way",
    )
    search = page.locator(".filter input[type=search]")
    if search.count():
        # A word that some rows have and others do not.
        rows = page.locator("table[data-filterable] tbody tr")
        word = rows.first.locator("th").inner_text().split()[0]
        search.first.fill(word)
        shown = page.evaluate("() => [...document.querySelectorAll('table[data-filterable] tbody tr')].filter((r) => !r.hidden).length")
        said = page.locator(".filter output").first.inner_text()
        check(0 < shown < rows.count() and said.startswith(f"{shown} of "), f"{name}: the search leaves {said}")
        search.first.fill("")
        choice = page.locator(".filter select")
        if choice.count():
            choice.first.select_option(index=1)
            said = page.locator(".filter output").first.inner_text()
            check(int(said.split()[0]) < rows.count(), f"{name}: the choice leaves {said}")
            choice.first.select_option(index=0)


def read_out(page, check, name):
    plot = page.locator("figure[data-points] svg.plot").first
    if plot.count() == 0:
        return
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = page.locator(".readout").first.inner_text()
    check(": " in said, f"{name}: the arrow keys read a plot out ({said[:60]})")


def follow(page, check, name):
    link = page.locator("td a[href^='#']").first
    if link.count() == 0:
        return
    target = link.get_attribute("href")
    link.click()
    at = page.evaluate("(id) => document.getElementById(id).getBoundingClientRect().top", target[1:])
    check(-1 <= at <= 900, f"{name}: a figure leads to {target}")


def open_page(browser, check, path, view, scheme, scripts, shots):
    label, width, height = view
    name = f"{path.name}, {label}, {scheme}{'' if scripts else ', scripts off'}"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=True, bypass_csp=False
    )
    page = context.new_page()
    if not scripts:
        # The page's own script is kept from running; ours still looks at the result.
        page.route("**/*", lambda route: route.fulfill(
            body=path.read_text().replace("<script>", "<script type='text/plain'>"), content_type="text/html"))
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    start = time.monotonic()
    page.goto(path.absolute().as_uri())
    ready = time.monotonic() - start
    check(len(asked) == 1, f"{name}: one request, the page itself" + ("" if len(asked) == 1 else f", found {asked}"))
    check(not said, f"{name}: nothing on the console" + ("" if not said else f", found {said}"))
    wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    check(wide <= 0, f"{name}: no sideways scroll" + ("" if wide <= 0 else f", {wide} pixels too wide"))
    ratio, where = page.evaluate(CONTRAST)
    check(ratio >= 4.5, f"{name}: lowest contrast {ratio:.2f}" + ("" if ratio >= 4.5 else f" at {where}"))
    if scripts and scheme == "light":
        wrong = page.evaluate(STRUCTURE)
        files = page.evaluate("() => [...document.querySelectorAll('a[href^=\"./\"]')].map((a) => a.getAttribute('href'))")
        wrong += [f"no such file: {name}" for name in files if not (path.parent / urllib.parse.unquote(name)).is_file()]
        check(not wrong, f"{name}: headings, tables, plots, links" + ("" if not wrong else f": {wrong}"))
        check(ready < 1.0, f"{name}: interactive after {ready * 1000:.0f} ms")
        sort_and_filter(page, check, name)
        read_out(page, check, name)
        follow(page, check, name)
        check(len(asked) == 1, f"{name}: still one request after all that")
    if not scripts:
        check(page.locator("button.sort").count() == 0, f"{name}: no button that does nothing")
        check(page.locator("table").count() > 0, f"{name}: its tables stand there")
    if shots and scripts:
        page.evaluate("() => window.scrollTo(0, 0)")
        page.screenshot(path=str(shots / f"{path.stem}-{label}-{scheme}.png"), full_page=True)
    context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        sys.exit("no Chromium: install it (`apt-get install chromium`) or name it in CHROMIUM")
    check = Checks()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        print(f"Chromium {browser.version}")
        for path in arguments.pages:
            size = path.stat().st_size
            check(size < 5_000_000, f"{path.name}: {size / 1e6:.2f} MB")
            for view in VIEWS:
                for scheme in ("light", "dark"):
                    open_page(browser, check, path, view, scheme, True, arguments.screenshots)
            open_page(browser, check, path, VIEWS[0], "light", False, None)
        browser.close()
    print(f"{check.failed} checks failed" if check.failed else "all checks hold")
    sys.exit(1 if check.failed else 0)


if __name__ == "__main__":
    main()
