"""Every code block of the README and the documentation runs, or gives the reason why it cannot."""

from __future__ import annotations

import re

import pytest

from tests.docs.code_blocks import run_page
from tests.house.modules import ROOT

PAGES = sorted(
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if re.search(r"^```", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_of_a_page_run(path, page_folder):
    page = run_page(path, page_folder)
    assert all(page.skipped), "a block is skipped without a reason"


PAGE = """\
```text
exit 1
```

```python title="greet.py"
GREETING = "good morning"
```

```python
import greet
assert greet.GREETING == "good morning"
```

```python
def test_greeting():
    import greet
    assert greet.GREETING
```

```sh
test -f greet.py
```

```toml
[quantize]
method = "mse"
```

<!-- skip: next "needs a second machine" -->
```sh
exit 1
```
"""


def test_blocks_run_in_order(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    page = run_page(path, tmp_path)
    assert page.ran == 4
    assert page.skipped == ["needs a second machine"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```sh\nfalse\ntrue\n```", "page.md:3: exit code 1"),
        ("```python\nraise ValueError('seen')\n```", "ValueError: seen"),
        ("```python\ndef test_it():\n    assert 1 == 2\n```", "assert 1 == 2"),
        ('```toml\n[quantize]\nmethode = "mse"\n```', "methode"),
        ("```cobol\nDISPLAY\n```", "nothing runs 'cobol'"),
        ("```\nls\n```", "cannot read ''"),
        ('```sh title="../../outside"\nls\n```', "outside the page's folder"),
    ],
)
def test_a_block_that_fails_names_its_place(tmp_path, block, message):
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\n{block}\n")
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_page(path, tmp_path)
