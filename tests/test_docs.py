"The docs pipeline: links, headings, words for pictures, code on pages that runs, and a README that anyone can read"
import importlib.util, json, re, shlex, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import nbformat, pytest, yaml

ROOT = Path(__file__).resolve().parent.parent

sys.path.append(str(ROOT/'docs')) # its files import one another

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
    assert '[the store](nbs/00_data.ipynb)' in text and '```python\nlen(jets)\n```\n\n    5\n' in text and '![See the store.](docs/readme/1.png)' in text
    assert 'secret' not in text and 'quiet' not in text and '    loud' in text and '<b>' not in text
    assert pics=={'1.png':b'hello'}

# --- what the pages show can be copied

pages,links = load('pages'),load('links')
WRITTEN = sorted((ROOT/'docs'/'pages').rglob('*.md'))
_fence = re.compile(r'^```(\w+)\n(.*?)^```$', re.M|re.S)

def blocks(fn, lang): return [m[2] for m in _fence.finditer(fn.read_text(encoding='utf-8')) if m[1]==lang]
def with_(lang): return [pytest.param(f, id=f.stem) for f in WRITTEN if blocks(f, lang)]

@pytest.mark.parametrize('fn', with_('python'))
def test_python_on_a_page_runs(fn, tmp_path, monkeypatch):
    "All blocks of a page one after another, in an empty folder; a `%` line is the notebook's own"
    import matplotlib.pyplot as plt
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('JETBOOK_DATA', raising=False)
    names = {'__name__':'page'}
    for i,code in enumerate(blocks(fn, 'python')):
        code = re.sub(r'^%pip install .*$', '', code, flags=re.M)
        exec(compile(code, f'{fn.name}, block {i+1}', 'exec'), names)
    plt.close('all')

def commands(text): return [shlex.split(l, comments=True) for l in text.replace('\\\n',' ').splitlines() if l.split('#')[0].strip()]

def check_command(words):
    "Is this a command line that can be typed?"
    if words[0]=='jetbook':
        from jetbook.cli import parser
        a = parser().parse_args(words[1:])
        if a.verb=='train': from jetbook.train.runs import get_recipe; r = get_recipe(a.recipe); r.check(r.parse(a.set))
        if a.verb=='fit': from jetbook.anomaly.methods import anomaly_method; anomaly_method(a.detector)
        if a.verb=='compare' and a.recipes: from jetbook.train.runs import get_recipe; [get_recipe(o) for o in a.recipes.split(',')]
    elif words[0]=='make': assert re.search(rf'^{words[1]}:', (ROOT/'Makefile').read_text(), re.M), words
    else: assert words[:2]==['pip','install'] or words==['git','clone','https://github.com/jetbook/jetbook','&&','cd','jetbook'], words

@pytest.mark.parametrize('fn', with_('sh'))
def test_command_lines_on_a_page_are_right(fn):
    for words in commands(''.join(blocks(fn, 'sh'))): check_command(words)

@pytest.mark.parametrize('line', ['jetbook trian conv_ae sample:qg -o r', 'jetbook train no_such_recipe sample:qg -o r', 'jetbook train conv_ae sample:qg -o r --set no=1', 'make nothing', 'rm -rf /'])
def test_the_check_of_command_lines_finds_it(line):
    with pytest.raises((SystemExit, AssertionError, ValueError)): check_command(shlex.split(line))

def test_front_page_shows_command_lines_that_are_right():
    for words in commands(''.join(blocks(ROOT/'README.md', 'sh'))): check_command(words)

# --- pictures have words

@pytest.mark.parametrize('heading,prose,code,want', [
    ('Pictures', 'One idea.\n\nThe [jet](x.ipynb) of `y=1` is *thin*, and its core is what carries it. More.', '', 'Pictures: The jet of y=1 is thin, and its core is what carries it.'),
    ('`f`', r'Where $\Delta\phi$ is small, so is the error of the mass:', "ax.set(xlabel=r'$\\phi$', ylabel='jets')", 'f: Where Δφ is small, so is the error of the mass (x: φ, y: jets)'),
    ('', '', '', 'picture')])
def test_alt_text(heading, prose, code, want): assert nbsrc.alt_text(heading, prose, code)==want

def test_alt_text_is_short(): assert len(nbsrc.alt_text('heading', 'word '*200, "ax.set(xlabel='pT (GeV)')")) < 230

def test_a_picture_gets_words_and_an_anchor():
    v = nbformat.v4
    shows = v.new_code_cell('#| slow\nax.plot()', outputs=[v.new_output('display_data', data={'image/png':'aGVsbG8='})])
    book = v.new_notebook(cells=[v.new_markdown_cell('## Curves\n\nHow the loss falls in the first ten epochs.'), v.new_code_cell('1'), shows])
    one, = nbsrc._mark(book)
    assert (one.heading,one.slow,one.pngs)==('Curves',True,[b'hello'])
    assert shows.metadata['mystnb']=={'image':{'alt':'Curves: How the loss falls in the first ten epochs.'}}
    assert book.cells[-1] is shows and f'id="{one.anchor}"' in book.cells[-2].source

# --- the book's order

def test_sidebar_lists_the_notebooks_in_order():
    side = yaml.safe_load((ROOT/'nbs'/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed = [f for o in side for f in (o['contents'] if isinstance(o, dict) else [o])]
    chapters,studies = (sorted(p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').glob(g)) for g in ('[0-9]*.ipynb', 'studies/*.ipynb'))
    assert [f for f in listed if f not in ('index.ipynb', 'tour.ipynb')]==[*chapters, *studies]

def test_a_page_of_ours_does_not_take_a_name_of_sphinx():
    assert nbsrc._links(f'[`scan`]({SITE}search.html#scan) and [all](06f_search.ipynb)', {'06f_search':'searches'}, {'searches':{'scan'}})=='[`scan`](searches.ipynb#scan) and [all](searches.ipynb)'

@pytest.mark.parametrize('md,want', [
    ('The girth of a jet, its girth.', 'The {term}`girth` of a jet, its girth.'), ('Girth counts', '{term}`Girth <girth>` counts'), ('`girth`, [girth](a.md), $girth$', '`girth`, [girth](a.md), $girth$'),
    ('## girth\n\n| girth |\n', '## girth\n\n| girth |\n'), ('```\ngirth\n```\ngirths', '```\ngirth\n```\ngirths'), ('a variational autoencoder', 'a {term}`variational autoencoder`')])
def test_first_use_of_a_word_leads_to_the_glossary(md, want): assert nbsrc._glossary(md, set())==want

# --- pages made from what is there

def fake_book(**kwargs): return SimpleNamespace(**{**dict(blob='https://x.org/', pages={'02_a':'a'}, nbs={'02_a':0}, text={'02_a':"`make bench ARGS='--only b2'`"}, number=lambda k: '02', title=lambda k: 'A'), **kwargs})

def test_each_benchmark_has_a_page_with_its_command(tmp_path):
    _,res = pages.benchmarks(fake_book(), tmp_path)
    assert [b for b,_ in res]==[f'b{i+1}' for i in range(len(res))] and len(res) > 7
    for b,title in res:
        text = (tmp_path/'results'/f'{b}.md').read_text()
        assert text.startswith(f'# {title}\n') and pages._command(b) in text, b
        assert (ROOT/'nbs'/'studies'/f'{pages._study(b)}.ipynb').exists() if pages._study(b) else re.search(rf'{b}_\w+\.py', text), b
    assert '[02 A](../a.ipynb)' in (tmp_path/'results'/'b2.md').read_text() and '../a.ipynb' not in (tmp_path/'results'/'b3.md').read_text()

def test_a_picture_that_is_not_there_is_an_error(tmp_path):
    book = fake_book(shown={'02_a':[nbsrc.Shown('shown-1', 'What it reaches', 'words', False, [b'png'])]})
    text = pages._pictures('```{picture} 02_a#what-it-reaches\nA curve.\n```\n', book, tmp_path, '../')
    assert '{figure} ../pictures/02_a-shown-1.png' in text and ':alt: words' in text and 'A curve. From [02_a](../a.ipynb).' in text
    assert (tmp_path/'pictures'/'02_a-shown-1.png').read_bytes()==b'png'
    with pytest.raises(SystemExit, match='02_a#what-it-reaches'): pages.picture(book, '02_a#elsewhere')

# --- the API

docments = load('docments')

@pytest.mark.parametrize('md,want', [
    ('what `idx` is', 'what ``idx`` is'), ('the `Jet`s', 'the ``Jet``\\ s'), ('fitted `x_`, or y_ and *a*', 'fitted ``x_``, or y\\_ and \\*a\\*'),
    ('a gain [2105.14027]', 'a gain `arXiv:2105.14027 <https://arxiv.org/abs/2105.14027>`__'), ('[torch](https://pytorch.org)', '`torch <https://pytorch.org>`__')])
def test_docstrings_are_markdown(md, want): assert docments.rst(md)==want

def test_comments_beside_parameters_become_fields():
    from jetbook.data.store import toy_jets
    text = '\n'.join(docments.fields(toy_jets))
    assert ':param n: number of jets' in text and ':param kind:' in text and ':returns: JetStore' in text
    assert docments.fields(len)==[]

def test_comments_beside_constants_are_their_docs():
    import jetbook.data.hdf5
    assert 'bytes' in docments.data_comments(jetbook.data.hdf5)['MAX_CHUNK']

def test_a_reference_to_nothing_fails_the_build(tmp_path):
    "`sphinx-build -n` with the exceptions of docs/conf.py still refuses a name of ours that is not there"
    exceptions = load('conf').nitpick_ignore_regex
    (tmp_path/'conf.py').write_text(f"extensions = ['sphinx.ext.autodoc']\nnitpick_ignore_regex = {exceptions!r}\n")
    build = lambda name: subprocess.run([sys.executable, '-m', 'sphinx', '-n', '-W', '-q', '-b', 'html', tmp_path, tmp_path/'out', tmp_path/'index.rst'], capture_output=True, text=True)
    for name,ok in (('torch.Tensor', True), ('jetbook.data.store.JetStoer', False)):
        (tmp_path/'index.rst').write_text(f'Page\n====\n\n:py:class:`{name}`\n')
        r = build(name)
        assert (r.returncode==0)==ok, r.stderr

# --- links of the built site

def site(tmp_path, **files):
    for k,v in files.items(): (tmp_path/f'{k}.html').write_text(v)
    return list(links.problems(tmp_path))

@pytest.mark.parametrize('html,why', [
    ('<a href="b.html#here">', None), ('<a href="#top"><p id="top">', None), ('<a href="https://x.org/a#b">', None), ('<img src="data:image/png;base64,aa">', None), ('<a href="mailto:a@b.org">', None),
    ('<a href="c.html">', 'no such file'), ('<a href="b.html#there">', 'no such place'), ('<img src="a.png">', 'no such file'), ('<script src="a.js">', 'no such file'), ('<a href="../b.html">', 'no such file'),
    ('<a href="https:///a">', 'no host'), ('<a href="http://a b.org">', 'space'), ('<a href="htp://a.org">', 'scheme'), ('<a href="https://x.org/a{b}">', 'brackets'), ('<a href="https://x.org/a.py#LNone">', 'no line')])
def test_links_of_a_page(html, why, tmp_path):
    bad = site(tmp_path, a=html, b='<h1 id="here">b</h1>')
    assert bad==[] if why is None else len(bad)==1 and why in bad[0]
