"""Man pages as Markdown, for the macros of man(7) that man/build.py and elbo-formats.5 use."""

from __future__ import annotations

import re

TEXT = {".TH", ".SH", ".SS", ".TP", ".B", ".PP", ".RS", ".RE", ".nf", ".fi"}
"""Every macro that is understood."""
OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z0-9-]*(?!\w*`)")
TAG_OF_PAGE = re.compile(r"\belbo(?:-[a-z]+)*\([15]\)")


def plain(line: str) -> str:
    """A line of roff without its escapes."""
    return line.removeprefix("\\&").replace("\\-", "-").replace("\\e", "\\")


def escaped(text: str) -> str:
    """Plain text for Markdown: no sign in it means anything, but for `code`; options become code."""
    parts = OPTION.sub(r"`\g<0>`", text).split("`")
    return "`".join(re.sub(r"([\\*_<\[\]|#$])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def linked(text: str, folder: str) -> str:
    """Each mention of a page, as elbo-train(1), as a link into the folder of the manual's pages."""
    return TAG_OF_PAGE.sub(lambda found: f"[{found[0]}]({folder}{found[0][:-3]}.md)", text)


def markdown(roff: str) -> str:
    """A page's Markdown. Raises ValueError for a macro that is not understood."""
    blocks: list[str] = []
    running: list[str] = []
    title = ""
    code = False
    tagged = False

    def end_of_paragraph() -> None:
        text = re.sub(r"^[-+] ", r"\\\g<0>", linked(escaped(" ".join(running)), ""))  # no list
        if text:
            blocks.append(f": {text}" if tagged else text)
        running.clear()

    lines = iter(roff.splitlines())
    for line in lines:
        macro, _, rest = line.partition(" ")
        if code and macro != ".fi":
            blocks[-1] += plain(line) + "\n"
            continue
        if macro == '.\\"':  # a comment
            continue
        if not line.startswith("."):
            running.append(plain(line))
            continue
        if macro not in TEXT:
            raise ValueError(f"{line!r} is no macro that docs/sphinx/manual.py knows")
        if macro == ".B":  # a command in running text
            running.append(f"`{plain(rest)}`")
            continue
        end_of_paragraph()
        tagged = macro == ".TP"
        if macro == ".TH":
            title = rest.split()[0].lower().replace("-", " ")
        elif macro in (".SH", ".SS"):
            heading = escaped(plain(rest))
            blocks.append(f"## {heading.capitalize()}" if macro == ".SH" else f"### {heading}")
        elif macro == ".TP":
            tag = plain(next(lines).removeprefix(".B "))
            blocks.append(f"`{tag}`")
        elif macro == ".nf":
            code = True
            blocks.append("```sh\n")
        elif macro == ".fi":
            code = False
            blocks[-1] += "```"
    end_of_paragraph()
    return f"# {title}\n\n" + "\n\n".join(blocks).replace("\n\n: ", "\n: ") + "\n"
