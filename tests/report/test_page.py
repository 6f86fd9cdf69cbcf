"""A page of one run or several, in any state, has every fact and figure, escapes strangers' text, and needs no other file."""

import json
import re
import shlex
import shutil
from pathlib import Path

import markdown
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_pages import ALERT, BOUND, HOSTILE, Reader, beyond_numbers, change, just_begun

from elbocli.core.adaptive import bin_edges
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.files import losslog
from elbocli.files.yaml_text import parse_yaml, read_yaml, yaml_text
from elbocli.report.figure import COLORS
from elbocli.report.gather import RunFacts
from elbocli.report.objective import weighting_terms
from elbocli.report.page import code, curve_line, model_card, number, pictures, render, swatch
from elbocli.report.summary import BITS, differences, figures, headline
from elbocli.runtime.text import visible
from elbocli.version import __version__

VALIDATION = {"val_loss": 0.5, "val_loss_se": 0.01, "val_bpd": 4.5, "val_bpd_se": 0.02}


@pytest.fixture
def copy(trained, tmp_path):
    """A run of its own to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def runs(copy):
    """Two runs of another weighting and batch; only the second has validation and a bound."""
    other = Path(shutil.copytree(copy, copy.with_name("two")))
    change(other, "settings", weighting="elbo", batch_size=8)
    (other / "validation.jsonl").write_bytes((other / "losslog.jsonl").read_bytes())
    with open(other / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 40, "images": 640, **VALIDATION}) + "\n")
    (other / "bound.json").write_text(json.dumps(BOUND))
    return [copy, other]


def shown(*runs):
    """The page of runs, as a browser reads it."""
    return Reader(render(*map(RunFacts, runs)))


def drawings(page):
    """The SVG pictures of a page of one run, by their names."""
    svgs = [text.partition("</svg>")[0] for text in page.split("<svg")]
    return {re.search(r'id="(\w+)-figure_1"', svg)[1]: svg for svg in svgs if "-figure_1" in svg}


def test_a_finished_run_says_everything(trained):
    facts = RunFacts(trained)
    page = render(facts)
    read = Reader(page)
    text = " ".join(read.text.split())
    assert "step 40 of 40 (40 saved), 640 images" in text and f"--config {trained}/config.yaml" in text
    for term in (WEIGHTINGS["sigmoid"], SCHEDULES["cosine"]):
        assert term.formula in text and term.source in text
    told = (facts.objective.last.verdict, facts.environment["device_name"])
    assert all(fact in read.text for fact in told)
    assert [strip.name for strip in facts.previews] == ["20", "40"]
    assert not facts.drawn and "after 40 steps" in text
    drawn = pictures(facts)
    assert [*drawn] == ["weighting", "noise", "schedule", "loss", "profiles"]
    for svg, _ in drawn.values():
        assert page.count(svg) == 1


def test_scores_while_training_are_curves_with_bands_and_their_last_values(runs):
    """Two runs: the first has two metrics, the second has only the first of them."""
    for run, keys in zip(runs, (("eval_frechet_distance", "eval_kernel_distance_mean"), ("eval_frechet_distance",))):
        with open(run / "metrics.jsonl", "a") as file:
            for step, value in ((20, 12.5), (40, 7.25)):
                scores = {f"{key}[elbo-tiny]": value for key in keys} | {f"{keys[0]}_se[elbo-tiny]": 0.5}
                file.write(json.dumps({"step": step, "images": 16 * step, **scores, "eval_samples": 50, "eval_s": 1.0}) + "\n")
    one = pictures(RunFacts(runs[0]))
    many = pictures(*map(RunFacts, runs))
    assert (
        {name for name in one if name.startswith("score")} == {name for name in many if "score" in name} == {"score0", "score1"}
    )
    assert "fill-opacity: 0.3" in one["score0"][0] and "fill-opacity: 0.3" not in one["score1"][0]
    assert [len(many[name][1]) for name in ("score0", "score1")] == [2, 1]
    band = curve_line(RunFacts(runs[0]), "eval_frechet_distance[elbo-tiny]").spread
    assert band.tolist() == [1, 1], "two standard errors"
    last = {row.name: (row.value, row.interval is not None) for row in headline(RunFacts(runs[0]))}
    assert last["frechet distance, elbo-tiny"] == (7.25, True) and last["kernel distance, elbo-tiny"] == (7.25, False)
    for read in (shown(runs[0]), shown(*runs)):
        assert "kernel distance, elbo-tiny" in read.text and "Of 50 samples" in read.text


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.long
def test_a_page_needs_nothing_but_itself_and_is_the_same_bytes_every_time(count, runs):
    page = render(*map(RunFacts, runs[:count]))
    assert "default-src 'none'" in page
    assert count == 1 or page == render(*map(RunFacts, runs))  # one: as a file and on standard output, below
    read = Reader(page)
    addresses = [value for name, value in read.attributes if name in ("src", "href", "xlink:href")]
    assert addresses and all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    names = [value for name, value in read.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {value[1:] for value in addresses if value[0] == "#"} | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(names)


def of_strangers(run):
    """Rename the run, and put hostile strings into all its files; the new path."""
    odd = run.rename(run.with_name("_$x$ &<b>\x1b[31m"))
    status = {"state": HOSTILE, "step": 1, "steps": 2, "images": 3, "message": HOSTILE, "time": 0}
    (odd / "status.json").write_text(json.dumps(status))
    config = read_yaml(odd / "config.yaml")
    config |= {"commands": [HOSTILE], "device_name": HOSTILE}
    config["data"] |= {"class_names": [HOSTILE, ALERT, *"23456789"], "path": HOSTILE, "payload_sha256": HOSTILE}
    config["settings"]["weighting"] = HOSTILE
    (odd / "config.yaml").write_text(yaml_text(config))
    scores = {f"frechet_distance[{HOSTILE}]": 1.0, HOSTILE: HOSTILE, "n_samples": 2, "extractor": HOSTILE}
    (odd / "a.json").write_text(json.dumps({**scores, "command": HOSTILE}))
    return odd


def test_strings_of_strangers_are_shown_as_text(copy, runs):
    odd = of_strangers(runs[1])
    alone = shown(odd)
    for read in (alone, shown(copy, odd)):
        assert "script" not in read.tags and "_$x$ &<b>" in read.text and HOSTILE in read.text
        assert not any(name.startswith("on") for name, _ in read.attributes)
    assert alone.text.count(ALERT) >= 9


def no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "previews")


def in_training(run):
    for name in ("metrics.jsonl", "losslog.jsonl"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) * 2 // 3])


def damaged(run):
    for path in (run / "previews").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    (run / "status.json").write_text('{"state": "done", "time": 1e999}')


def gone(run):
    change(run, "data", path="nowhere.h5", from_run="nowhere.h5")
    change(run, "settings", schedule="nowhere.yaml", weighting="v-mse@nowhere.yaml")


def other_network(run):
    change(run, "network", channels=7)


def too_large(run):
    change(run, "network", channels=10**9)


STATES = {
    no_checkpoint: [],
    in_training: [],
    just_begun: ["status.json"],
    damaged: ["step-00000020.png", "step-00000040.png", "status.json"],
    gone: ["nowhere.yaml"],
    too_large: ["config.yaml: network"],
    beyond_numbers: ["losslog.jsonl"],
    other_network: ["channels"],
}


@pytest.mark.long
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_run_in_any_state_is_shown_and_what_is_missing_is_said(state, copy):
    before = set(RunFacts(copy).missing)
    state(copy)
    facts = RunFacts(copy)
    said = [sentence for sentence in facts.missing if sentence not in before]
    assert all(any(word in sentence for sentence in said) for word in STATES[state])
    assert bool(said) == bool(STATES[state])
    text = Reader(render(facts)).text
    assert all(sentence in text for sentence in facts.missing)


def test_runs_in_all_states_are_shown_beside_another(trained, tmp_path):
    paths = [trained, *(Path(shutil.copytree(trained, tmp_path / state.__name__)) for state in STATES)]
    for state, path in zip(STATES, paths[1:]):
        state(path)
    facts = [RunFacts(path) for path in paths]
    text = Reader(render(*facts)).text
    assert all(sentence in text for each in facts for sentence in each.missing)


@pytest.mark.parametrize("spec", ["elbo", "edm", "edm:monotone", "x-mse:min-snr:5@linear-beta"])
def test_a_weighting_says_what_it_is_made_of_and_where_it_rises(spec, copy):
    weighting = parse_weighting(spec)
    just_begun(copy)
    change(copy, "settings", weighting=weighting.spec)
    facts = RunFacts(copy)
    terms = weighting_terms(weighting)
    assert terms[0].name == weighting.spec and all(term.formula and term.source for term in terms)
    assert len(terms) == {"x": 4}.get(spec[0], 1)
    page = render(facts)
    assert "nan" not in drawings(page)["noise"]
    assert ("Not monotone" in Reader(page).text) == bool(weighting.rising(-10, 10))


def test_a_run_named_by_where_one_stands_has_its_name(copy, monkeypatch):
    monkeypatch.chdir(copy / "checkpoints")
    facts = RunFacts(Path(".."))
    assert facts.name == "run" and any(each.command.endswith(" -o run-again") for each in facts.commands)


def test_a_result_is_shown_once_with_its_interval_and_the_images_that_it_is_of(copy, monkeypatch):
    """At the top of the page and in its tables."""
    monkeypatch.setattr("elbocli.report.page.pictures", lambda *runs: {})  # they take most of a page's time
    scores = {"frechet_distance[a]": 1.5, "frechet_distance_se[a]": 0.25, "n_samples": 60, "extractor": "a"}
    (copy / "fid.json").write_text(json.dumps(scores))
    change(copy, "settings", val_split=50)
    digest = read_yaml(copy / "config.yaml")["data"]["payload_sha256"]
    for trained_on, times in ((digest, 2), ("0" * 64, 0)):
        (copy / "bound.json").write_text(json.dumps({**BOUND, "payload_sha256": trained_on}))
        text = shown(copy).text
        assert text.count("on training images") == times and "trained on 250 images" in text
        assert text.count("n = 60") == 2
        assert "1.402 to 1.598" in text and text.count("1.01 to 1.99") == 2, "95 % intervals, 1.96 standard errors wide"
    assert len(RunFacts(copy, files=[copy / "checkpoints" / ".." / "bound.json"]).results["bound"]) == 1


# --- the model card ---


def card_of(run):
    """The metadata and the Markdown of the card that the command writes into a run."""
    text = model_card(RunFacts(run))
    _, block, body = text.split("---\n", 2)
    return parse_yaml(block, "card"), body


def test_a_card_has_the_metadata_and_the_facts_of_the_run(runs):
    alone, other = runs
    scores = {"frechet_distance[a]": 1.5, "frechet_distance_se[a]": 0.25, "n_samples": 60, "n_ref": 300, "extractor": "a"}
    (alone / "fid.json").write_text(json.dumps(scores))
    change(other, "network", num_classes=0)
    change(other, "settings", weighting="edm")
    for run, classes, metrics in ((alone, 10, ["frechet_distance"]), (other, 0, ["bits_per_dimension"])):
        block, body = card_of(run)
        config = read_yaml(run / "config.yaml")
        verdict = RunFacts(run).objective.last.verdict
        assert (block["library_name"], block["license"]) == ("elbo", "unknown") and block["metrics"] == metrics
        assert block["pipeline_tag"] == "unconditional-image-generation" and ("class-conditional" in block["tags"]) == bool(
            classes
        )
        facts = [
            verdict,
            config["data"]["payload_sha256"],
            f"elbo {__version__} or newer",
            "hf upload USER/NAME RUN",
            *(f"`{key}`: {config['settings'][key]}\n" for key in ("batch_size", "lr")),
        ]
        assert all(fact in body for fact in facts) and ("not an ELBO" in body) == (run == other), body
        assert ("--classes 0" in body) == bool(classes) and "(previews/step-00000040.png)" in body
        assert "\npip " not in body, "elbocli is on no package index"
    assert "**1.5**, 95 % interval 1.01 to 1.99 (n = 60)" in card_of(alone)[1]
    assert "**1.5**, 95 % interval 1.402 to 1.598" in card_of(other)[1] and str(alone.parent) not in card_of(alone)[1]


def test_a_card_of_strangers_is_text_and_of_a_run_in_any_state_is_one(copy, trained, tmp_path):
    plain = Reader(markdown.markdown(card_of(copy)[1]))
    for state in STATES:
        path = Path(shutil.copytree(trained, tmp_path / state.__name__))
        state(path)
        assert card_of(path)[0]["library_name"] == "elbo"
    odd = of_strangers(copy)
    (odd / "a.json").rename(odd / f"{ALERT.replace('/', '')}](x).json")
    (odd / "previews" / "step-1](javascript:x).png").write_bytes(b"")
    change(odd, "network", family="a\n---\n# <b>", num_classes=10)
    with open(odd / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 41, "images": 700, f"eval_{HOSTILE}": 1.0, "eval_samples": 3}) + "\n")
    config = read_yaml(odd / "config.yaml")
    for source in (None, {"format": HOSTILE, "file": HOSTILE, "sha256": HOSTILE, "licence": HOSTILE}):
        (odd / "config.yaml").write_text(yaml_text({**config, **({"source": source} if source else {})}))
        block, body = card_of(odd)
        read = Reader(markdown.markdown(body))
        assert block["tags"] == ["elbo", "diffusion", "image-generation", "class-conditional"]
        assert set(read.tags) <= {*plain.tags, "em"} and read.tags.count("h2") == plain.tags.count("h2") and ALERT in read.text
        assert {name for name, _ in read.attributes} <= {"src", "alt"}, "the preview's"


def test_a_card_lands_in_its_run_and_replaces_only_a_card_that_one_gives_up(copy, elbo):
    def card(*more):
        return elbo("report", copy, "--card", *more, cwd=copy.parent)

    assert card("-o", "-").stdout.startswith(b"---\nlibrary_name: elbo\n") and not (copy / "README.md").exists()
    assert card("-q").stdout == b"" and card().returncode == 2
    written = (copy / "README.md").read_text()
    (copy / "README.md").write_text(written.replace("unknown", "mit"))
    assert card("--overwrite").returncode == 0 and (copy / "README.md").read_text() == written
    (copy / "README.md").write_text("# Mine\n")
    assert [card("--overwrite").returncode, card(copy).returncode] == [2] * 2
    assert (copy / "README.md").read_text() == "# Mine\n" and card("-o", "a.md").returncode == 0


@given(st.text())
def test_a_code_span_ends_where_it_should(text):
    """By CommonMark: at the next run of as many backticks as began it."""
    span = code(text)
    words = visible(" ".join(text.split()))
    if not words:
        assert span == "*not known*"
        return
    fence = span[: len(span) - len(span.lstrip("`"))]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence) and inside.strip(" ") == words.strip(" ") and "\n" not in inside
    assert "`" not in (inside[0], inside[-1]) and fence not in re.findall("`+", inside)


DRAWS = {"one bin": {5: (1, 0.5, 0.25)}, "two": {5: (1, 0.5, 0.25), 9: (1, 0.4, 0.16)}, "no": {}}


@pytest.mark.parametrize(
    ("loss", "schedule", "draws"),
    [*((0.5, "cosine", draws) for draws in DRAWS), (0.0, "adaptive", "one bin"), (-1.0, "adaptive", "no")],
)
@pytest.mark.filterwarnings("error")
@pytest.mark.long
def test_a_run_in_its_first_steps_has_its_plots_and_no_complaints(loss, schedule, draws, copy):
    """One line in each log, with few draws or none, and with numbers that have no logarithm."""
    just_begun(copy)
    change(copy, "settings", schedule=schedule)
    sums = torch.zeros(3, 10, dtype=torch.float64)
    for place, values in DRAWS[draws].items():
        sums[:, place] = torch.tensor(values)
    for name in ("losslog.jsonl", "validation.jsonl"):
        (copy / name).write_text(losslog.header(bin_edges(-10, 10, 10)) + losslog.line(1, 16, sums))
    metrics = {"step": 1, "images": 16, **VALIDATION, "loss": loss, "val_loss": loss, "val_bpd_se": 5.0}
    (copy / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    page = render(RunFacts(copy))
    shown = {*drawings(page)} - {"weighting", "noise"}
    assert shown == {"schedule", "loss", "bits", *(["profiles"] if draws in ("one bin", "two") else [])}
    assert ("fitted while training" in Reader(page).text) == (schedule == "adaptive")


def test_numbers_are_for_people():
    values = (1234567, 0.123456, -1.5, True, None, 2.3e-5, 1e20)
    assert [*map(number, values)] == ["1&#8239;234&#8239;567", "0.1235", "−1.5", "True", "None", "2.3e−5", "1e20"]
    assert [number(value, 2) for value in (0.01234, 0.0, 12.6)] == ["0.012", "0", "13"]


# Several


def test_only_the_settings_that_differ_are_told_and_each_number_has_a_place_for_each_run(runs):
    facts = [RunFacts(run) for run in runs]
    assert differences(facts) == {"weighting": ["sigmoid:bias=2", "elbo"], "batch_size": [16, 8]}
    assert differences(facts[:1] * 2) == {}
    rows = {name: [row and row.value for row in values] for name, values in figures(facts).items()}
    bounds = [rows["variational bound", BITS + more] for more in ("", ", validation images")]
    assert bounds == [[None, 1.5], [None, 4.5]]
    text = Reader(render(*facts)).text
    assert "can't be compared" in text and "can't be compared" not in Reader(render(*facts[:1] * 2)).text


def test_every_run_has_its_line_on_every_plot_and_no_two_are_alike(runs):
    drawn = pictures(*map(RunFacts, runs))
    lines = {name: {color for (color, _), _ in legend} for name, (_, legend) in drawn.items()}
    assert all(f"stroke: {color.lower()}" in svg for svg, legend in drawn.values() for (color, _), _ in legend)
    assert lines == {
        **{name: {*COLORS[:2]} for name in ("weighting", "loss", "profiles")},
        **{name: {COLORS[1]} for name in ("val_loss", "val_bpd", "held_out")},
    }
    assert len({swatch(index) for index in range(30)}) == 30


@pytest.fixture(scope="module")
def folder(elbo, trained, digits, tmp_path_factory):
    """A folder with runs, samples, scores and a bound."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("run", "two"):
        shutil.copytree(trained, folder / name)
    change(folder / "two", "settings", batch_size=8)
    assert elbo("sample", trained, "-n", 40, "--steps", 2, "-o", "s.h5", cwd=folder).returncode == 0
    np.save(folder / "grey.npy", np.full((4, 8, 8, 1), 200, np.uint8))
    options = ("--extractor", "elbo-tiny", "--metrics", "fid")
    for name, words in {
        "fid.json": ("eval", "s.h5", "--ref", digits, *options),
        "bound.json": ("bound", trained, "-n", 20),
        "theorem.json": ("bound", trained, "--check", "-n", 20, "--draws", 64),
    }.items():
        result = elbo(*words, cwd=folder)
        assert result.returncode == 0, result.stderr
        (folder / name).write_bytes(result.stdout)
    return folder


def test_the_page_goes_to_a_file_or_to_standard_output(elbo, folder, tmp_path):
    page = tmp_path / "a.html"
    assert elbo("report", "run", "-o", page, cwd=folder).returncode == 0
    result = elbo("report", "run", cwd=folder)
    assert (result.returncode, result.stderr) == (0, b"") and result.stdout == page.read_bytes()


def test_everything_that_was_given_is_on_the_page_and_its_command_repeats_the_run(elbo, folder, tmp_path):
    results = ("fid.json", "bound.json", "theorem.json")
    words = [word for name in results for word in ("--scores", name)]
    assert elbo("report", "run", "--samples", "s.h5", *words, "-o", tmp_path / "a.html", cwd=folder).returncode == 0
    read = Reader((tmp_path / "a.html").read_text())
    assert all(word in read.text for word in (*results, "elbo sample", "elbo eval"))
    assert ("alt", "s.h5") in read.attributes
    again = next(line for line in read.text.splitlines() if "--config" in line)
    line = shlex.split(again)[1:-1]
    assert elbo(*line, tmp_path / "again", "--steps", 5, cwd=folder).returncode == 0
    made, again = (read_yaml(run / "config.yaml")["settings"] for run in (folder / "run", tmp_path / "again"))
    assert again == {**made, "steps": 5}


def test_the_command_compares_runs_with_samples_of_each(elbo, folder):
    page = elbo("report", "run", "two", "--samples", "s.h5", "--samples", "grey.npy", cwd=folder)
    text = Reader(page.stdout.decode()).text
    assert text.index("s.h5") < text.index("grey.npy") and "2 runs" in text and "batch size" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("nowhere", 1, "nowhere"),
        ("run --scores run/status.json", 1, "status.json"),
        ("run two --samples s.h5", 2, "--samples"),
        ("run two --scores fid.json", 2, "--scores"),
    ],
)
def test_mistakes_are_told(words, code, said, elbo, folder):
    result = elbo("report", *words.split(), "-o", "none.html", cwd=folder)
    assert result.returncode == code and said in result.stderr.decode() and not (folder / "none.html").exists()
