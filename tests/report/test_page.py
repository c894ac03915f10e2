"""The report in a real browser: without errors or requests, and fit for a phone."""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome is installed"
)
# Shows the report in a frame of a phone's width, or a laptop's, and tells what it did.
HARNESS = """<!doctype html><link rel="icon" href="data:,"><pre id="told"></pre>
<iframe src="/report.html" width="{width}" height="800" style="border:0"></iframe>
<script>
onload = () => {{
  const page = frames[0], root = page.document.documentElement;
  const cells = () =>
    [...page.document.querySelectorAll("#table-scores tbody tr")].map(
      (row) => [row.cells[0].textContent, row.cells[2].textContent]);
  const before = cells();
  const head = page.document.querySelectorAll("#table-scores thead th")[2];
  head.querySelector("button").click();
  const after = cells(), sorted = head.getAttribute("aria-sort");
  // What is unfolded for printing is folded again; what is open stays open.
  const folded = [...page.document.querySelectorAll("details")];
  folded[0].open = true;
  const open = () => folded.map((one) => one.open);
  const closed = open();
  page.dispatchEvent(new page.Event("beforeprint"));
  const printed = folded.filter((one, i) => one.open && !closed[i]).length;
  page.dispatchEvent(new page.Event("afterprint"));
  const foldedAgain = JSON.stringify(open()) === JSON.stringify(closed);
  // Every column of every table, up and down: which tables were not sorted by it.
  const tables = [...page.document.querySelectorAll("table")];
  const unsorted = new Set();
  let sortable = 0;
  for (const table of tables) {{
    const rows = [...table.tBodies[0].rows];
    const buttons = [...table.querySelectorAll("thead button")];
    sortable += buttons.length > 0;
    if ((rows.length > 3) !== (buttons.length === table.tHead.rows[0].cells.length))
      unsorted.add(table.id);
    buttons.forEach((button, column) => {{
      for (const sign of [1, -1]) {{
        button.click();
        const keys = [...table.tBodies[0].rows].map((row) =>
          row.cells[column].dataset.key ?? row.cells[column].textContent);
        const known = keys.filter((key) => key !== "");
        const numbers = known.every((key) => !Number.isNaN(Number(key)));
        const inOrder = known.every((key, i) => i === 0 || 0 <= sign * (numbers
          ? key - known[i - 1]
          : key.localeCompare(known[i - 1], "en", {{ numeric: true }})));
        const blankLast = keys.slice(known.length).every((key) => key === "");
        const kept = new Set([...table.tBodies[0].rows]).size === rows.length;
        if (!inOrder || !blankLast || !kept) unsorted.add(`${{table.id}} ${{column}}`);
      }}
    }});
  }}
  // Tables that scroll although the window has room for them.
  const cut = [...page.document.querySelectorAll(".scroll")].filter((one) =>
    one.scrollWidth > one.clientWidth
    && one.getBoundingClientRect().right < root.clientWidth - 60);
  const told = {{
    cut: cut.map((one) => one.getAttribute("aria-label")),
    width: root.clientWidth,
    scroll: root.scrollWidth,
    ground: page.getComputedStyle(page.document.body).backgroundColor,
    broken: [...page.document.images].filter(
      (i) => i.getClientRects().length && !i.naturalWidth).length,
    images: page.document.images.length,
    loaded: page.performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => !name.startsWith("data:")),
    before, after, sorted, unsorted: [...unsorted], sortable,
    printed, foldedAgain,
    attacked: page.attacked === true,
  }};
  document.getElementById("told").textContent = JSON.stringify(told);
}};
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and the harness; records the requested paths."""

    def do_GET(self):
        self.server.asked.append(self.path)
        found = re.fullmatch(r"/harness-(\d+)", self.path)
        if not found:
            return super().do_GET()
        body = HARNESS.format(width=found[1]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(study_report):
    handler = functools.partial(Handler, directory=study_report)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def browse(server, profile, width, *flags):
    """Returns the output of the harness, and the requested paths; errors fail the test."""
    server.asked.clear()
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            # Whatever is not this test's own server is a failure, and logged as one.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
            "--window-size=1400,1000", "--timeout=20000", *flags, "--dump-dom",
            f"http://127.0.0.1:{server.server_port}/harness-{width}",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    return json.loads(html.unescape(told)), list(server.asked)


def test_the_page_fits_a_phone_asks_for_nothing_and_sorts(server, tmp_path):
    told, asked = browse(server, tmp_path, 375)
    assert asked == ["/harness-375", "/report.html"] and told["loaded"] == []
    assert told["width"] == told["scroll"] and 350 < told["width"] <= 375
    assert told["images"] > 20 and told["broken"] == 0
    assert not told["attacked"]
    arms = [arm for arm, _ in told["before"]]
    assert arms == ["scratch", "natural", "texture", "two-stage"]
    assert told["after"] == sorted(told["before"], key=lambda cells: cells[1])
    assert told["after"] != told["before"]
    assert told["sorted"] == "ascending"
    assert told["printed"] == 5 and told["foldedAgain"]
    assert told["unsorted"] == [] and told["sortable"] > 10
    assert told["ground"] == "rgb(255, 255, 255)"


def text_of(pdf):
    """Returns the text of a PDF file without white space, as lines may be broken."""
    if shutil.which("pdftotext"):
        command = ["pdftotext", pdf, "-"]
    else:
        command = ["gs", "-q", "-dBATCH", "-dNOPAUSE", "-sDEVICE=txtwrite", "-o-", pdf]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return "".join(done.stdout.split())


@pytest.mark.skipif(
    not (shutil.which("pdftotext") or shutil.which("gs")),
    reason="neither pdftotext nor Ghostscript is installed",
)
def test_paper_has_transfers_and_settings_and_says_where_the_rest_is(
    study_report, tmp_path
):
    subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer",
            f"--print-to-pdf={tmp_path / 'report.pdf'}",
            (study_report / "report.html").as_uri(),
        ],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    text = text_of(tmp_path / "report.pdf")
    assert text.count("Transferinto") == 4 and "params/head/kernel" in text
    assert "Everysettingofthestudy" in text
    assert "config.stages.target.optim.learning_rate" in text
    for folded, file in (
        ("Everyrowoftheresults", "tables/rows.csv"),
        ("Everysettingthatwastried", "tables/tried.csv"),
        ("Figure:saliency", "figures/explain_saliency.png"),
    ):
        assert folded not in text
        assert file in text


def test_the_page_follows_a_dark_scheme_on_a_laptop(server, tmp_path):
    flag = "--blink-settings=preferredColorScheme=0"
    told, _ = browse(server, tmp_path, 1280, flag)
    assert told["width"] == told["scroll"] and told["width"] > 1200
    assert told["cut"] == []
    assert told["ground"] == "rgb(20, 24, 29)"
