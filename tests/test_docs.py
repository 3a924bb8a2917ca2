"The docs pipeline: links, headings, and a README that anyone can read"
import importlib.util, json
from pathlib import Path

import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent

def load(name):
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT/'docs'/f'{name}.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod

nbsrc,readme = load('nbsrc'),load('readme')
SITE,PAGES = nbsrc.site,{'00_data':'data'}
DOCUMENTED = dict(files={'pack','source'}, data={'jetstore','jetstore.images','jetstore.__len__'})

@pytest.mark.parametrize('md,want', [
    (f'a [`pack`]({SITE}files.html#pack) b', 'a [`pack`](files.ipynb#pack) b'),
    (f'[`JetStore.images`]({SITE}data.html#jetstore.images)', '[`JetStore.images`](data.ipynb#jetstoreimages)'),
    (f'## [`pack`]({SITE}files.html#pack)', '## `pack`'),
    (f'the [`_watch`]({SITE}loaders.html#_watch) one', 'the `_watch` one'),
    (f'[`JetStore.__len__`]({SITE}data.html#jetstore.__len__)', '[`JetStore.__len__`](data.ipynb#jetstore__len__)'),
    ('[the store](00_data.ipynb#images)', '[the store](data.ipynb#images)'),
    (f'[the [`JetStore`]({SITE}data.html#jetstore) page](00_data.ipynb)', '[the `JetStore` page](data.ipynb)'),
    ('[elsewhere](https://example.org/a.html)', '[elsewhere](https://example.org/a.html)')])
def test_links(md, want): assert nbsrc._links(md, PAGES, DOCUMENTED)==want

DOC = f"""---

[source](https://example.org/x.py#L3){{target="_blank"}}

### pack

```python

def pack(
    source, # of a [`Source`]({SITE}files.html#source)
):

```

*Pack it*
"""

def test_a_symbol_has_one_heading_and_one_signature():
    plain = nbsrc._show_doc(DOC)
    assert '### `pack`' in plain and 'source, # of a `Source`' in plain and '<a class="jb-src" href="https://example.org/x.py#L3">' in plain
    assert '### ' not in nbsrc._show_doc(DOC, headed={'pack'})
    assert 'def pack' not in nbsrc._show_doc(DOC, shown=True) and '*Pack it*' in nbsrc._show_doc(DOC, shown=True)

def nb(tmp_path, *cells):
    v,fn = nbformat.v4,tmp_path/'index.ipynb'
    make = lambda c: v.new_markdown_cell(c) if isinstance(c,str) else v.new_code_cell(c[0], outputs=[v.new_output(**o) for o in c[1:]])
    nbformat.write(v.new_notebook(cells=[make(c) for c in cells]), fn)
    return fn

def test_readme(tmp_path):
    fn = nb(tmp_path, '# jetbook', 'See [the store](00_data.ipynb).', ('#| hide\nsecret()',), ('#| echo: false\nquiet()', dict(output_type='stream', name='stdout', text='loud\n')),
            ('len(jets)', dict(output_type='execute_result', data={'text/plain':'5', 'text/html':'<b>5</b>'}, execution_count=None)),
            ('jets.show()', dict(output_type='display_data', data={'image/png':'aGVsbG8=', 'text/plain':'<Figure>'})))
    text,pics = readme.readme(fn)
    assert '[the store](nbs/00_data.ipynb)' in text and '```python\nlen(jets)\n```\n\n    5\n' in text and '![](docs/readme/1.png)' in text
    assert 'secret' not in text and 'quiet' not in text and '    loud' in text and '<b>' not in text
    assert pics=={'1.png':b'hello'}
