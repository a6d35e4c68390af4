"""Names in Markdown: a parser of Markdown reads them as the text that they are, in a table, a list and a heading."""

import pytest
from markdown_it import MarkdownIt

from kdalign.errors import printable
from kdalign.runs.markdown import code_block, code_span, escape, escape_line

NAMES = [
    "![x](http://evil.example/p.png)",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\n# heading",
    "a\r\n\r\n- item",
    "a | b || c",
    "back\\slash \\| pipe \\\\|",
    "`code` ``more``",
    "**bold** ~~gone~~ $x^2$",
    "&lt;b&gt; &#60;i&#62; & more",
    "<http://evil.example>",
    "[x]: http://evil.example",
    "1. first",
    "12) twelfth",
    "> quoted",
    "+ plus",
    "- minus",
    "# sharp",
    "=====",
    "a\u202eb\x1b[31mc\udcff",
]
DANGEROUS = {"link_open", "image", "html_inline", "html_block", "em_open", "strong_open", "s_open", "heading_open"}


def parsed(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def kinds(tokens):
    return [child.type for token in tokens for child in (token, *(token.children or ()))]


def texts(tokens):
    """What is shown by each inline part."""
    return ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_table_is_one_cell_of_text(name):
    tokens = parsed(f"| model | n |\n|---|---:|\n| {escape(name)} | 5 |")
    assert not DANGEROUS & set(kinds(tokens))
    assert texts(tokens) == ["model", "n", printable(name).strip(), "5"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_begins_a_line_is_one_item_and_in_a_heading_one_heading(name):
    tokens = parsed(f"- {escape_line(name)}\n- end")
    assert not DANGEROUS & set(kinds(tokens))
    assert kinds(tokens).count("bullet_list_open") == 1
    assert not {"ordered_list_open", "blockquote_open", "code_block", "hr"} & set(kinds(tokens))
    assert texts(tokens) == [printable(name).strip(), "end"]
    tokens = parsed(f"# {escape_line(name)}\n\nend")
    assert kinds(tokens).count("heading_open") == 1
    assert texts(tokens) == [printable(name).strip(), "end"]


@pytest.mark.parametrize("name", NAMES)
def test_a_code_span_holds_a_name_whatever_it_has(name):
    for begin, end in (("", ""), ("| a |\n|---|\n| ", " |")):
        tokens = parsed(f"{begin}{code_span(name)}{end}")
        assert not DANGEROUS & set(kinds(tokens))
        assert texts(tokens)[-1] == " ".join(printable(name).split())


def test_a_block_ends_where_it_ends():
    recipe = "teacher: 'x\n\n  ```\n\n  # heading\n\n  ````'\nout: \x1b[2Jr\n"
    tokens = parsed(code_block(recipe, "yaml") + "\n\nend")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == recipe.replace("\x1b", "")


def test_no_address_becomes_a_link_on_its_own():
    for address in ("http://evil.example/x", "https://evil.example", "www.evil.example", "me@evil.example"):
        shown = escape(f"see {address}")
        assert not any(sign in shown for sign in ("://", "www.", "e@e"))
        assert texts(parsed(shown)) == [f"see {address}"]
