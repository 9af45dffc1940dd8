"""HTML in which nothing but the text changes, also in HTML that no browser would call so."""

import time
from html import escape
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.serving.http.markup import Markup

# fmt: off
JUNK = [
    "<", ">", "</", "<a", "<b>", "</b>", "<!--", "-->", "--!>", "<!", "<![CDATA[", "]]>", "<?", "=", '"', "'", "/", " ",
    "a", "&", "&amp;", "&#x", "&nbsp;", "é", "\n", "\t", "\0", "</p", "<p translate=no>", "<li class='notranslate x'>",
    "<script>", "</script>", "<title>", "<textarea>", "<pre>", "<td>",
]
SLOW = [
    "<", "<a", "<a ", "<a b=", "<a b='", "</", "</a ", "<!", "<!--", "<![", "<?", "&", "&#", "&nbsp;", " ", "a ",
    "<div>", "<p translate=no>", "<div translate=no><i translate=yes>", "<b translate=no></i>", "<i></b>", "<title>",
    "</p><p>",
]
# fmt: on
WORDS = st.from_regex(r"[a-zé]{1,4}( [a-z&<>]{1,3} [a-z]{1,3})?", fullmatch=True)
NAMES = ("b", "div", "section", "ul")


@st.composite
def documents(draw, depth=3):
    """HTML that is right, and the texts in it that are translated, with what marks them in each document."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        if depth and draw(st.booleans()):
            name = draw(st.sampled_from(NAMES))
            marked = draw(st.sampled_from(["", ' title="a > b"', " translate='no'", ' class="x notranslate"']))
            inner, texts = draw(documents(depth - 1))
            parts.append((f"<{name}{marked}>{inner}</{name}>", [] if "no" in marked else texts))
        else:
            text = draw(WORDS)
            parts.append((f"<i>{escape(text, quote=False)}</i> \n", [text]))
    return "".join(html for html, _ in parts), [text for _, texts in parts for text in texts]


class Tags(HTMLParser):
    """All but the text, as the standard library sees it."""

    def __init__(self, html):
        super().__init__()
        self.seen = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, attrs))

    def handle_endtag(self, tag):
        self.seen.append(tag)

    def handle_comment(self, data):
        self.seen.append(data)


def translated(html):
    markup = Markup.of(html)
    return markup.filled([text.upper() for text in markup.texts])


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("", ""),
        ("a & b", "A &amp; B"),
        ("<p>one <b>two</b>, three</p>", "<p>ONE <b>TWO</b>, THREE</p>"),
        ("<p>\n  one\n  two\t</p>\n", "<p>\n  ONE TWO\t</p>\n"),
        ("<pre>one\n  two</pre>\n<p>one\n two", "<pre>ONE\n  TWO</pre>\n<p>ONE TWO"),
        ("&nbsp;a&nbsp;b&#160; &copy; <b>&copy;</b>", "&nbsp;A\xa0B\xa0 © <b>&copy;</b>"),
        ("caf&eacute; &lt;b&gt; &amp;amp;", "CAFÉ &lt;B&gt; &amp;AMP;"),
        ("1 &euro; &mdash; <i>&mdash;</i>!", "1 &euro; &mdash; <i>&mdash;</i>!"),
        ("a < b <3 <", "A &lt; B &lt;3 &lt;"),
        ('<a title="a > b" href=\'x">y\'>c</a>', '<a title="a > b" href=\'x">y\'>C</a>'),
        ("<a b=c/d>e</a x='>'>f", "<a b=c/d>E</a x='>'>F"),
        ("<IMG alt=a>b<br/>c<custom-tag/>d", "<IMG alt=a>B<br/>C<custom-tag/>D"),
        ("<!DOCTYPE a><!-- a > b -->c<!-->d<!--->e<!---- -->", "<!DOCTYPE a><!-- a > b -->C<!-->D<!--->E<!---- -->"),
        ("a<!-- b --!>c<? d >e<![CDATA[ f >g</ h>i</>j", "A<!-- b --!>C<? d >E<![CDATA[ f >G</ h>I</>J"),
        ("a<!-- b", "A<!-- b"),
        ("a <b c", "A <b c"),
        ("a <b c='d> e</b>", "A <b c='d> e</b>"),
        ("<script>a < b</scripts></Script >c", "<script>a < b</scripts></Script >C"),
        ("<style>a</style>b<textarea>c<d></textarea>e", "<style>a</style>B<textarea>c<d></textarea>E"),
        ("<script translate=yes>a", "<script translate=yes>a"),
        ("<title>a <b> &amp; c</title>d", "<title>A &lt;B&gt; &amp; C</title>D"),
        ("<plaintext>a</plaintext>", "<plaintext>a</plaintext>"),
        ("a <code>b <i>c</i></code> d", "A <code>b <i>c</i></code> D"),
        ("<code translate=yes>a</code>", "<code translate=yes>A</code>"),
    ],
)  # fmt: skip
def test_only_text_changes(html, expected):
    assert translated(html) == expected


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<p translate="no">a</p>b', '<p translate="no">a</p>B'),
        ("<p TRANSLATE=NO>a</p>b", "<p TRANSLATE=NO>a</p>B"),
        ("<p translate=n&#111;>a</p>b", "<p translate=n&#111;>a</p>B"),
        ("<p translate=yes translate=no>a", "<p translate=yes translate=no>A"),
        ("<p class=' a\nnotranslate '>a</p>b", "<p class=' a\nnotranslate '>a</p>B"),
        ("<p class=notranslated>a</p>b", "<p class=notranslated>A</p>B"),
        ("<div translate=no>a<b translate>b</b>c<b translate=yes>d<i translate=no>e</i>f</b>g</div>h",
         "<div translate=no>a<b translate>B</b>c<b translate=yes>D<i translate=no>e</i>F</b>g</div>H"),
        ("<div translate=no><div>a</div>b</div>c", "<div translate=no><div>a</div>b</div>C"),
        ("<div translate=no>a<br>b<img translate=yes>c</div>d<br translate=no>e",
         "<div translate=no>a<br>b<img translate=yes>c</div>D<br translate=no>E"),
    ],
)  # fmt: skip
def test_what_is_marked_stays(html, expected):
    assert translated(html) == expected


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<div><span translate=no>a</div>b", "<div><span translate=no>a</div>B"),
        ("<span translate=no>a</b></i>b</span>c", "<span translate=no>a</b></i>b</span>C"),
        ("<div translate=no><i><b>a</div>b", "<div translate=no><i><b>a</div>B"),
        ("<i><div translate=no>a</i>b</div>c", "<i><div translate=no>a</i>b</div>C"),
        ("<b translate=no><div>a</b>b</div>", "<b translate=no><div>a</b>B</div>"),
        ("<p translate=no>a<p>b", "<p translate=no>a<p>B"),
        ("<p>x<div translate=no>a</p>b</div>c", "<p>X<div translate=no>a</p>b</div>C"),
        ("<ul><li translate=no>a<ul><li>b</ul>c<li>d</ul>", "<ul><li translate=no>a<ul><li>b</ul>c<li>D</ul>"),
        ("<dl><dt translate=no>a<dd>b</dl>", "<dl><dt translate=no>a<dd>B</dl>"),
        ("<tr translate=no><td>a<td>b<tr><td>c", "<tr translate=no><td>a<td>b<tr><td>C"),
        ("<tr><td translate=no>a<tr><td>b", "<tr><td translate=no>a<tr><td>B"),
        ("<select><option translate=no>a<option>b</select>", "<select><option translate=no>a<option>B</select>"),
        ("<span translate=no><div class=notranslate>a</span>b</div>c</span>d",
         "<span translate=no><div class=notranslate>a</span>b</div>c</span>D"),
        ("</div></div>a<p translate=no>b</p>c", "</div></div>A<p translate=no>b</p>C"),
    ],
)  # fmt: skip
def test_tags_that_do_not_fit(html, expected):
    assert translated(html) == expected


@pytest.mark.parametrize("lines", ["\n", "\r\n", "\r", "\u2028", "\x0b", "\x85"])
def test_lines_of_all_kinds(lines):
    html = f"{lines}<p>{lines}a{lines}</p>{lines}b"
    assert translated(html) == html.upper().replace("P", "p")


@given(documents())
def test_texts_are_found_and_tags_stay(document):
    html, texts = document
    markup = Markup.of(html)
    assert list(markup.texts) == texts
    changed = markup.filled([f"{text}, & <b>" for text in texts])
    assert Tags(changed).seen == Tags(html).seen
    assert changed.replace(", &amp; &lt;b&gt;", "") == html
    assert Markup.of(changed).texts == tuple(f"{text}, & <b>" for text in texts)


@given(st.lists(st.sampled_from(JUNK), max_size=30).map("".join) | st.text(alphabet="<>/!-a b=\"'&;\n", max_size=60))
@settings(max_examples=1000)
def test_anything_comes_back(html):
    markup = Markup.of(html)
    assert markup.filled(markup.texts) == html
    place, kept = 0, markup.filled(["\ue000"] * len(markup.texts)).split("\ue000")
    for part in kept:
        place = html.find(part, place)
        assert place >= 0
        place += len(part)
    assert html.startswith(kept[0])
    assert html.endswith(kept[-1])


@pytest.mark.parametrize("part", SLOW)
def test_time_is_linear(part):
    def seconds(count):
        html = f"<i>{part * count}x</i>"
        started = time.process_time()
        assert Markup.of(html).filled(Markup.of(html).texts) == html
        return time.process_time() - started

    count = 100_000 // len(part)
    assert seconds(count) < 1 or seconds(count) < 1


def test_one_translation_for_each_text():
    with pytest.raises(ValueError, match="shorter"):
        Markup.of("<p>a</p>b").filled(["A"])
