"""What every benchmark writes."""

import json
from pathlib import Path

from benchmarks.mixture import measure
from benchmarks.report import Row, report, table


def test_a_report_is_a_table_and_a_file_of_rows_machine_and_settings(tmp_path: Path) -> None:
    rows = [Row("a", 2.0, "x", 1.5), Row("b", 3.0, "s", 2.0, "lower"), Row("c", 1.0, "%")]
    report(rows, {"k": 3}, tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    assert set(written) == {"rows", "machine", "settings"}
    assert written["rows"][0] == {
        "name": "a", "value": 2.0, "unit": "x", "target": 1.5, "better": "higher",
    }  # fmt: skip
    assert written["rows"][2]["target"] is None
    assert written["machine"]["cores"] >= 1 and written["settings"] == {"k": 3}
    assert [row.met for row in rows] == [True, False, None]
    lines = table(rows).splitlines()
    assert "met" in lines[1] and "MISSED" in lines[2] and len(lines) == 4


def test_the_mixture_benchmark_compares_equal_formulas() -> None:
    names = [row.name for row in measure(prompts=4, tokens=2, width=32, unique=6)]
    assert names == [
        f"{kind}_d32_p6_tokens8" for kind in ("mole_share", "published_share", "speedup")
    ]
