"""The pages that a report leaves for readers: HTML with everything in it, LaTeX, PDF."""

import base64
import html.parser
import io
import re
import wave
from pathlib import Path

import pytest

from pruning.report.__main__ import main
from pruning.report.groups import build_groups
from pruning.report.latex import escape, latex_tables
from pruning.report.records import load_records
from tests.run_folders import write_run


class _Checked(html.parser.HTMLParser):
    """Collects tags and their attributes, and fails where they do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(autouse=True)
def small_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw plots in few pixels: none is looked at here."""
    monkeypatch.setattr("pruning.report.plots.DPI", 30)


def _report(tmp_path: Path, *flags: str) -> Path:
    write_run(tmp_path / "runs" / "dense", "dense", subset="a<b>&c")
    write_run(tmp_path / "runs" / "parp", subset="a<b>&c")
    write_run(tmp_path / "runs" / "other", "dense", subset="1h")
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out", str(out), *flags]) == 0
    return out


def test_html_is_well_formed_and_shows_names_as_they_are(tmp_path: Path) -> None:
    page = (_report(tmp_path, "--no-plots") / "results.html").read_text()
    _Checked(page)
    assert "subset a&lt;b&gt;&amp;c" in page
    assert "<b>&c" not in page


def test_html_needs_no_other_file(tmp_path: Path) -> None:
    out = _report(tmp_path)
    found = _Checked((out / "results.html").read_text()).found
    pictures = [attributes["src"] for tag, attributes in found if tag == "img"]
    names = re.findall(r"!\[.*\]\((.*)\)", (out / "results.md").read_text())
    assert len(pictures) == len(names) > 3
    for source, name in zip(pictures, names, strict=True):
        assert source is not None
        kind, content = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == (out / name).read_bytes()
    assert not [attributes for tag, attributes in found if tag in ("script", "link")]


def test_html_holds_what_was_said_heard_and_recorded(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMIT_ROOT", str(small_corpus))
    folder = write_run(tmp_path / "runs" / "run", data=None, operations=["SS="])
    label = min((small_corpus / "TEST").rglob("SX*.PHN"))
    name, sentence = label.parent.name.lower(), label.stem.lower()
    line = '{"utt_id": "%s", "speaker": "s", "operations": "SS=", "reference": ["a", "b", "c"], '
    line += '"hypothesis": ["x", "y", "c"]}\n'
    (folder / "test.jsonl").write_text(line % f"{name}_{sentence}")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-plots"]) == 0
    page = (tmp_path / "out" / "results.html").read_text()
    assert f"<b>{name}_{sentence}</b>: 2 errors in 3 tokens" in page
    assert "<dt>said</dt><dd>a b c</dd><dt>PARP</dt><dd>x y c</dd>" in page
    (audio,) = (attributes for tag, attributes in _Checked(page).found if tag == "audio")
    assert audio["src"] is not None
    with wave.open(io.BytesIO(base64.b64decode(audio["src"].split(",")[1]))) as recording:
        assert recording.getframerate() == 16_000
        assert recording.getnframes() > 1000


def test_html_goes_without_recordings_where_the_corpus_is_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMIT_ROOT", str(tmp_path / "nowhere"))
    page = (_report(tmp_path, "--no-plots") / "results.html").read_text()
    assert "Worst utterances" in page
    assert "<audio" not in page


@pytest.mark.long
def test_plots_are_pdf_where_asked_for(tmp_path: Path) -> None:
    out = _report(tmp_path, "--format", "pdf")
    pdfs = list(out.glob("*.pdf"))
    assert pdfs
    assert all(path.read_bytes().startswith(b"%PDF-") for path in pdfs)
    assert not list(out.glob("*.png"))
    assert "data:image/png" in (out / "results.html").read_text()  # which browsers show


@pytest.mark.parametrize("flags", [["--format", "svg"], ["--format", "png", "--no-plots"]])
def test_formats_that_cannot_be_are_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["runs", "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2
    assert "--format" in capsys.readouterr().err


def test_latex_has_a_tabular_for_each_group_with_rates_in_percent(tmp_path: Path) -> None:
    for seed in (0, 1):
        operations = [["=S"] * 12, ["=="] * 12][seed]
        write_run(tmp_path / f"dense-{seed}", "dense", seed=seed, operations=operations)
        write_run(tmp_path / f"parp-{seed}", seed=seed, operations=operations, prune_every=5)
    write_run(tmp_path / "default", seed=0, operations=["=S"] * 12)
    tables = latex_tables(build_groups(load_records([tmp_path])))
    assert "dense & 0 & 25.00 $\\pm$ 35.36 & " in tables
    assert "PARP & 50 & 50.00 & 50.00--50.00 & 1 \\\\\n" in tables
    assert "PARP, prune every 5 & 50 & 25.00 $\\pm$ 35.36" in tables
    assert tables.count("\\midrule") == 2
    assert tables.count("\\begin{tabular}") == tables.count("\\end{tabular}") == 1


def test_latex_sees_no_command_in_a_name() -> None:
    assert escape("a_b 5% \\x{~}") == r"a\_b 5\% \textbackslash{}x\{\textasciitilde{}\}"
