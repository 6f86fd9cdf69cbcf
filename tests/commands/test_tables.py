"""A terminal gets a table that fits it, with the caveats of the numbers; a pipe and --json get all numbers as JSON."""

import json

import pytest
from harness import on_terminal


@pytest.fixture(scope="module")
def lines(trained, digits, tmp_path_factory, elbo):
    """Command lines by name; each prints one result."""
    folder = tmp_path_factory.mktemp("tables")
    for name, seed in (("a", 1), ("b", 2)):
        assert elbo("sample", trained, "-n", 30, "--steps", 2, "--seed", seed, "-o", folder / f"{name}.npz").returncode == 0
    score = ("eval", folder / "a.npz", "--ref", digits, "--extractor", "elbo-tiny", "-q")
    for name in ("a", "b"):
        (folder / f"{name}.json").write_bytes(elbo("eval", folder / f"{name}.npz", *score[2:]).stdout)
    return {
        "eval": score,
        "bound": ("bound", trained, "-n", 8, "-q"),
        "check": ("bound", trained, "-n", 8, "-q", "--check"),
        "estimators": ("bound", trained, "-n", 8, "-q", "--estimator", "ode:steps=4"),
        "compare": ("compare", folder / "a.json", folder / "b.json"),
    }


EXPECTED = {
    "eval": ["frechet distance", "30 images", "not for publication", "Fewer than 10000", "standard error"],
    "bound": ["bits per dimension", "reconstruction", "on which the run was trained", "8 of"],
    "check": ["agree", "monotone"],
    "estimators": ["ode:steps=4", "probability-flow"],
    "compare": ["same weights: sampling noise", "30 images a score", "± standard errors"],
}


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_table_fits_the_terminal_and_has_the_caveats(name, columns, lines, tmp_path):
    _, shown = on_terminal(*lines[name], columns=columns, cwd=tmp_path)
    words = " ".join(shown.split())
    assert "{" not in shown and not [text for text in EXPECTED[name] if text not in words], shown
    paths = [str(word) for word in lines[name] if "/" in str(word)]
    table = [line for line in shown.splitlines() if not line.startswith("elbo ") and not any(path in line for path in paths)]
    assert max(map(len, table)) <= columns and not shown.endswith("\n\n")


def test_json_is_the_same_on_a_terminal_and_in_a_pipe(lines, tmp_path, elbo):
    for name in ("bound", "estimators", "compare"):
        shown = json.loads(on_terminal(*lines[name], "--json", cwd=tmp_path)[1])
        assert shown.pop("command", "").removesuffix(" --json") == (piped := json.loads(elbo(*lines[name]).stdout)).pop(
            "command", ""
        )
        assert shown == piped


def test_adapt_shows_variances_on_a_terminal_and_writes_the_schedule_elsewhere(trained, tmp_path, elbo):
    shown = on_terminal("adapt", trained, cwd=tmp_path)[1]
    assert "fitted" in shown and "logsnr_min:" not in shown and "-o FILE" in shown
    piped = elbo("adapt", trained, cwd=tmp_path)
    assert piped.stdout.startswith(b"format: elbo-schedule") and b"fitted" in piped.stderr
    written = on_terminal("adapt", trained, "-o", "s.yaml", cwd=tmp_path)[1]
    assert (tmp_path / "s.yaml").read_bytes() == piped.stdout and "fitted" in written
