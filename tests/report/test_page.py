"""A page of runs, a loss log, results and images in any state has their facts, escapes strangers' text, and needs no other file."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.errors import ElboError, FormatError
from elbocli.files.yaml_text import parse_yaml, read_yaml, yaml_text
from elbocli.report.page import DENSITY, ERROR, LOSS, POINTS, code, read_source, render_card, render_page, write_report
from elbocli.runtime.text import visible

HOSTILE = "\"><img src=x onerror='alert(1)'><script>alert(1)</script> $x$ {{ 7 * 7 }}"


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(trained, tmp_path):
    """A run of its own to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def change(run, section, **values):
    config = read_yaml(run / "config.yaml")
    config[section] = {**config[section], **values}
    (run / "config.yaml").write_text(yaml_text(config))


def plots(page):
    """The SVG of each plot by its title."""
    pattern = r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"'
    return {title: base64.b64decode(data).decode() for data, title in re.findall(pattern, page)}


def test_a_run_with_its_scores_is_shown_and_the_page_is_self_contained(run, digits, elbo):
    options = ("--extractor", "elbo-tiny", "--metrics", "fid")
    for name, words in {"fid.json": ("eval", digits, "--ref", digits, *options), "bound.json": ("bound", run, "-n", 20)}.items():
        (run / name).write_bytes(elbo(*words).stdout)
    with open(run / "metrics.jsonl", "a") as file:
        for step in (20, 40):
            scores = {"eval_frechet_distance[x]": 1.0, "eval_samples": 50}
            file.write(json.dumps({"step": step, "images": 16 * step, **scores}) + "\n")
    page = render_page([run])
    read = Reader(page)
    for shown in ("40 of 40", "its loss is the ELBO", "Variational bound", "frechet distance", "schedule", "elbo train"):
        assert shown in read.text, shown
    assert {LOSS.title, ERROR.title, DENSITY.title, "frechet distance[x]"} < set(plots(page))
    assert not any("samples" in title for title in plots(page))
    assert ("alt", "step-00000040") in read.attributes
    addresses = [value for name, value in read.attributes if name in ("src", "href")]
    assert all(address.startswith("data:image/") for address in addresses) and "default-src 'none'" in page
    assert not {"script", "link", "iframe"} & set(read.tags) and page == render_page([run])


def test_several_runs_share_plots_and_show_the_settings_that_differ(run):
    other = Path(shutil.copytree(run, run.with_name("other")))
    change(other, "settings", weighting="edm", batch_size=8)
    page = render_page([run, other])
    assert f"{str(run)[-20:]}" in plots(page)[ERROR.title] and "/other" in plots(page)[ERROR.title]
    assert "batch_size" in page and "not an ELBO" in page


def test_a_loss_log_alone_has_its_errors_density_and_verdict(run):
    log = run / "losslog.jsonl"
    entry = read_source(log)
    assert {LOSS, ERROR, DENSITY} & set(entry.curves) == {ERROR, DENSITY} and "its loss is the ELBO" in entry.verdict
    drawn, schedule = entry.curves[DENSITY]
    assert np.trapezoid(drawn.y, drawn.x) == pytest.approx(np.trapezoid(schedule.y, schedule.x), rel=0.1)
    log.write_text(log.read_text().replace('"schedule": "cosine"', '"schedule": "adaptive"'))
    assert [curve.name for curve in read_source(log).curves[DENSITY]] == ["drawn"] and read_source(log).verdict
    of_run = read_source(run).curves[ERROR]
    assert np.array_equal(entry.curves[ERROR][0].y, of_run[0].y)


def test_results_and_images_are_shown_beside_a_run_from_the_shell(run, digits, elbo):
    np.save(run.with_name("grey.npy"), np.full((4, 8, 8, 1), 200, np.uint8))
    made = elbo("report", "run", "grey.npy", digits, "-o", "a.html", cwd=run.parent)
    assert made.returncode == 0 and not made.stdout
    read = Reader((run.parent / "a.html").read_text())
    assert {("alt", "grey.npy"), ("alt", str(digits))} < set(read.attributes)
    piped = elbo("report", "run", "grey.npy", digits, cwd=run.parent)
    assert piped.stdout == (run.parent / "a.html").read_bytes()


def test_long_logs_are_averaged_and_keep_their_mean(run):
    rows = [{"step": i, "images": i, "loss": 1 / i} for i in range(1, 5 * POINTS + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
    (loss,) = read_source(run).curves[LOSS]
    assert len(loss.y) == POINTS and loss.y.mean() == pytest.approx(np.mean([row["loss"] for row in rows]))


def just_begun(run):
    for path in run.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def damaged(run):
    for name in ("previews/step-00000020.png", "losslog.jsonl", "metrics.jsonl", "status.json"):
        (run / name).write_bytes(b'{"step": "x", \xff}\n')
    (run / "bound.json").write_text('{"format": "elbo-bound", "version": 1, "bpd": "x"}')


def moved(run):
    change(run, "settings", schedule="nowhere.yaml")


def huge(run):
    row = {"step": 40, "images": 640, "loss": 1e300, "val_loss": None, "val_bpd": "many", "eval_x": -1e300}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (just_begun, []),
        (damaged, ["step-00000020.png", "losslog.jsonl", "metrics.jsonl", "status.json", "bound.json"]),
        (moved, ["nowhere.yaml"]),
        (huge, []),
    ],
)
def test_a_run_in_any_state_has_a_page_and_a_card(state, named, run):
    state(run)
    missing = read_source(run).missing
    assert all(any(word in message for message in missing) for word in named) and bool(missing) == bool(named)
    text = Reader(render_page([run])).text
    assert all(message in text for message in missing)
    assert render_card(run).startswith("---\nlibrary_name: elbo\n")


def test_other_and_damaged_sources_are_refused(run, tmp_path, elbo):
    damaged(run)
    (run / "config.yaml").write_text("format: elbo-run\nsettings: 3\n")
    for path in (run, run / "losslog.jsonl", run / "bound.json", tmp_path, tmp_path / "none"):
        with pytest.raises(ElboError, match=re.escape(str(path))):
            write_report([path], tmp_path / "page.html")
    done = elbo("report", run, "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and not (tmp_path / "page.html").exists()
    assert elbo("report", run, run, "--card").returncode == 2
    with pytest.raises(FormatError):
        render_card(run)


def test_text_of_strangers_is_shown_as_text(run):
    odd = run.rename(run.with_name("_$x$ &<b>\x1b[31m"))
    (odd / "status.json").write_text(
        json.dumps({"state": HOSTILE, "step": 1, "steps": 2, "images": 3, "message": HOSTILE, "time": 0})
    )
    (odd / f"{HOSTILE.replace('/', '')}.json").write_text('{"format": "elbo-bound", "version": 1, "bpd": "x"}')
    (odd / "previews" / "step-1](javascript:x).png").write_bytes(b"")
    change(odd, "network", family="a\n---\n# <b>", odd=HOSTILE)
    with open(odd / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 41, "images": 700, f"eval_{HOSTILE}": 1.0}) + "\n")
    read = Reader(render_page([odd, odd]))
    assert "script" not in read.tags and HOSTILE in read.text and "_$x$ &<b>" in read.text and "\x1b" not in read.text
    assert not any(name.startswith("on") for name, _ in read.attributes)
    _, block, body = render_card(odd).split("---\n", 2)
    card = Reader(markdown.markdown(body))
    assert parse_yaml(block, "card")["library_name"] == "elbo" and not {"script", "b"} & set(card.tags)
    assert {name for name, _ in card.attributes} <= {"src", "alt"} and str(run.parent) not in body


def test_a_card_replaces_only_a_card_that_one_gives_up(run, elbo):
    line = ("report", run, "--card", "-o", run / "README.md")
    assert elbo(*line).returncode == 0 and elbo(*line).returncode == 2
    text = (run / "README.md").read_text()
    assert "](previews/step-00000040.png)" in text and elbo(*line, "--overwrite").returncode == 0
    (run / "README.md").write_text("# Mine\n")
    assert elbo(*line, "--overwrite").returncode == 2 and (run / "README.md").read_text() == "# Mine\n"


@given(st.text(min_size=1))
def test_a_code_span_ends_where_it_should(text):
    """By CommonMark: at the next run of as many backticks as began it."""
    words = visible(" ".join(text.split()))
    span = code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence) and inside.strip(" ") in (words.strip(" "), "-") and "\n" not in inside
    assert "`" not in (inside[0], inside[-1]) and fence not in re.findall("`+", inside)
