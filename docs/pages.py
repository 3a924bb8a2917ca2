"All pages of the site that are no notebook: those of docs/pages/, the book's contents, results and API, made from what is there"
import io, re
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT/'docs'/'pages'

def _put(out, name, text):
    (out/name).parent.mkdir(parents=True, exist_ok=True)
    (out/name).write_text(text.rstrip()+'\n', encoding='utf-8')

def _toctree(names): return '```{toctree}\n:hidden:\n\n'+'\n'.join(names)+'\n```\n'

def _html(s): return s.replace('&','&amp;').replace('<','&lt;').replace('>','&gt;').replace('"','&quot;')

def _thumb_name(book, k, s, i=0): return f"{book.pages[k].replace('/', '-')}-{s.anchor}-{i}.png"

def _link(url, text): return f'[{text}]({url})'

# --- pictures of notebooks on other pages

def slug(heading): return re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')

def picture(book, where):
    "The first picture under a heading of a notebook, as `02_conv_ae#collapse-to-black-and-how-to-avoid-it`: (`Shown`, PNG)"
    k,_,at = where.strip().partition('#')
    there = [s for s in book.shown.get(k, ()) if s.pngs]
    for s in there:
        if slug(s.heading)==at: return s,s.pngs[0]
    raise SystemExit(f"docs/pages: no picture {where}. There are: {', '.join(f'{k}#{slug(s.heading)}' for s in there) or 'none'}")

_pic = re.compile(r'^```\{picture\} (\S+)\n(.*?)\n```$', re.M|re.S)

def _pictures(text, book, out, up):
    "`{picture}` blocks -> figures, and where each is from"
    def _one(m):
        s,png = picture(book, m[1])
        k = m[1].partition('#')[0]
        name,of = f"pictures/{k.replace('/', '-')}-{s.anchor}.png",'the front page' if k=='index' else k
        (out/'pictures').mkdir(exist_ok=True); (out/name).write_bytes(png)
        return f'```{{figure}} {up}{name}\n:alt: {s.alt}\n\n{m[2]} From [{of}]({up}{book.pages[k]}.ipynb).\n```'
    return _pic.sub(_one, text)

def _sections():
    "RESULTS.md: what stands above its sections, and (title, text) of each"
    head,*parts = re.split(r'^## ', (ROOT/'benchmarks'/'RESULTS.md').read_text(encoding='utf-8'), flags=re.M)
    return head,[p.split('\n', 1) for p in parts]

def _note(head): return next((p for p in head.strip().split('\n\n') if p.startswith('*')), '') # in italics: it holds for every section

_res = re.compile(r'^```\{results\} (b\d)\ncolumns: (.*)\nrows: (.*)\n```$', re.M)

def _results(text, up):
    "`{results}` blocks -> some columns and rows of a table of RESULTS.md, and its command"
    def _one(m):
        body, = (b for t,b in _sections()[1] if t.startswith(f'{m[1].upper()}:'))
        head,_,*rows = [[c.strip() for c in l.strip('|').split('|')] for l in body.splitlines() if l.startswith('|')]
        cols,there = [head.index(c) for c in m[2].split(', ')],{r[0].replace('`',''):r for r in rows}
        line = lambda r: '| '+' | '.join(r[i] for i in cols)+' |'
        return '\n'.join([line(head), '|---'*len(cols)+'|', *(line(there[k]) for k in m[3].split(' | '))]) + f'\n\n`{_command(m[1])}`: [all of them]({up}results/{m[1]}.md).'
    return _res.sub(_one, text)

def written(book, out):
    "Pages that people wrote"
    for f in sorted(PAGES.rglob('*.md')):
        name = f.relative_to(PAGES)
        up = '../'*(len(name.parts)-1)
        text = re.sub(r'\]\((?:\.\./)+benchmarks/(\w+\.\w+)', rf']({book.blob}benchmarks/\1', f.read_text(encoding='utf-8'))
        text = re.sub(r'\]\((?:\.\./)+([A-Z]\w+\.md)', rf']({book.blob}\1', text)
        _put(out, name, _pictures(book.linked(_results(text, up), up), book, out, up))

# --- the book's contents

def _card(title, link, kind, text='', image='', alt=''):
    "A card of sphinx-design: a picture, a title that links, and a line of text"
    options = [f':link: {link}', f':link-type: {kind}'] + ([f':img-top: {image}', f':img-alt: {alt}'] if image else [])
    return '\n'.join([f':::{{grid-item-card}} {title}', *options, '', text, ':::'])

def _grid(cards, columns='1 2 3 3'): return '\n'.join([f'::::{{grid}} {columns}', ':gutter: 3', '', *cards, '::::'])

def _chapter(book, k):
    "A notebook of the contents: its first picture, title and subtitle"
    first = next((s for s in book.shown[k] if s.pngs), None)
    picture = dict(image=f'/thumbs/{_thumb_name(book, k, first)}', alt=first.alt) if first else {}
    return _card(f'{book.number(k)} {book.title(k)}'.strip(), '/'+book.pages[k], 'doc', book.about(k), **picture)

def contents(book, out):
    "The notebooks in order, by part, each with a picture"
    text = ['# The book', 'The notebooks in the order to read them. A chapter is also a module of the library: what you read is what `import jetbook` runs. A study exports nothing: it asks a question '
            'and answers it with the library. Code, pictures and tables are as the notebook\'s last run left them.']
    for part,ks in book.parts.items(): text.append(f'## {part}\n\n'+_grid([_chapter(book, k) for k in ks]))
    names = [f'{book.number(k)} {book.title(k)} <{book.pages[k]}>'.strip() for ks in book.parts.values() for k in ks]
    _put(out, 'book.md', '\n\n'.join([*text, _toctree(names)]))

# --- results

TABLES = ROOT/'nbs'/'studies'/'tables' # a section of the results each, written by the study of that name

def _study(name):
    "The study that writes the section `b6` of the results, or None where a benchmark does"
    return next((f.stem for f in sorted(TABLES.glob('*.md')) if f.read_text(encoding='utf-8').startswith(f'## {name.upper()}:')), None)

def _command(name): return f'make studies NB={_study(name)}' if _study(name) else f"make bench ARGS='--only {name}'"

def _in_one_sentence(title): return title.split(':', 1)[1].strip()

def benchmarks(book, out):
    "A page for each section of benchmarks/RESULTS.md, with the command that writes it again; returns (name, title) of them"
    head,parts = _sections()
    res = []
    for title,body in parts:
        name = title.split(':')[0].lower()
        scripts = sorted((ROOT/'benchmarks').glob(f'{name}_*.py'))
        told = [k for k in book.nbs if k!='index' and (re.search(rf'--only {name}\b', book.text[k]) or k==f'studies/{_study(name)}')]
        how = [f'Again: `{_command(name)}`', *(_link(f'{book.blob}benchmarks/{s.name}', f'`{s.name}`') for s in scripts)]
        if told: how.append('read in ' + ', '.join(_link(f'../{book.pages[k]}.ipynb', f'{book.number(k)} {book.title(k)}'.strip()) for k in told))
        body = body.replace('](README.md', '](how.md').replace('README.md', '[How it is measured](how.md)')
        _put(out, f'results/{name}.md', f"# {title}\n\n{{.jb-nav}}\n{' · '.join(how)}\n\n{_note(head)}\n\n{body.strip()}\n")
        res.append((name, title))
    how = (ROOT/'benchmarks'/'README.md').read_text(encoding='utf-8').replace('# Benchmarks', '# How it is measured', 1).replace('](RESULTS.md)', '](index.md)')
    _put(out, 'results/how.md', re.sub(r'`((?:b\d_)?\w+\.py)`', lambda m: _link(f'{book.blob}benchmarks/{m[1]}', f'`{m[1]}`') if (ROOT/'benchmarks'/m[1]).exists() else m[0], how))
    return re.sub(r'^# .*\n', '', head).strip(), res

def _thumb(png, fn, width=360):
    "A small copy of a picture for the gallery"
    with Image.open(io.BytesIO(png)) as im:
        im = im.convert('RGBA')
        page = Image.new('RGB', im.size, 'white'); page.paste(im, mask=im.getchannel('A'))
        page.thumbnail((width, width))
        page.quantize(64).save(fn, optimize=True)

def _numbered(name, hrefs):
    "Links to the tables under one heading"
    first,*more = [f'<a href="{h}">{name if i==1 else i}</a>' for i,h in enumerate(hrefs, 1)]
    return ', '.join([first, *more])

def gallery(book, out):
    "Every picture and table of the notebooks, and the command that computes it again"
    (thumbs := out/'thumbs').mkdir()
    text = ['# Pictures and tables of the notebooks', 'Every one is computed by the cell above it; a click leads there. The command under a notebook\'s name runs it again, in place; '
            'those marked *slow* take longer than a test may, and are computed with `FLAGS=slow`.']
    for k in [k for ks in book.parts.values() for k in ks]:
        shown = book.shown[k]
        slow = any(s.slow for s in shown)
        cmd = f"`make studies NB={k.removeprefix('studies/')}`" if '/' in k else f'`make notebooks NB={k}`' + (', and with `FLAGS=slow` what is marked' if slow else '')
        figs,tables = [],{}
        for s in shown:
            href,mark = f'../{book.pages[k]}.html#{s.anchor}',' (slow)' if s.slow else ''
            for i,png in enumerate(s.pngs):
                _thumb(png, thumbs/(name := _thumb_name(book, k, s, i)))
                figs.append(_card(f'{s.heading or book.title(k)}{mark}', href, 'url', image=f'/thumbs/{name}', alt=s.alt))
            if not s.pngs: tables.setdefault(_html(s.heading or book.title(k))+mark, []).append(href)
        if figs or tables:
            text.append(f'## {book.number(k)} {book.title(k)}\n\n{cmd}'.replace('##  ', '## '))
            if figs: text.append(_grid(figs, '2 3 4 5'))
            if tables: text.append(f'<p>Tables: {" · ".join(_numbered(*o) for o in tables.items())}</p>')
    _put(out, 'results/pictures.md', '\n\n'.join(text))

def in_short(book):
    "The table of the front page, which its cell reads from RESULTS.md"
    for c in book.nbs['index'].cells:
        for o in c.get('outputs', ()):
            if (t := o.get('data', {}).get('text/markdown', '')).startswith('| what |'): return t
    raise SystemExit('docs/pages: nbs/index.ipynb has no table of results')

CURVES = """```{picture} studies/taggers#curves
Quark/gluon taggers on jets they have not seen: gluon rejection against quark efficiency.
```

```{picture} studies/bytes_error#the-shipped-w-and-qcd-jets
Bytes of a QCD jet against the error of its mass, of its momentum and of its pixels, for every code.
```

```{picture} studies/anomaly_search#results-of-each-method
How well each anomaly score finds W jets among QCD jets (blue) and QCD jets among W jets (orange); 0.5 is guessing. The first row is a supervised classifier; CWoLa is given a mixture; the others learn
from background alone.
```"""

def results(book, out):
    machine,bs = benchmarks(book, out)
    gallery(book, out)
    n = sum(len(s.pngs) for ss in book.shown.values() for s in ss)
    rows = '\n'.join(f'| [{t.split(":")[0]}]({b}.md) | {_in_one_sentence(t)} | `{_command(b)}` |' for b,t in bs)
    _put(out, 'results/index.md', f"""# Results

Every table and curve of the project, and the command that makes it again. Jets are simulated with Pythia 8 and a parametrised detector: the figures tell how
methods compare, not what they reach on CMS data. Nothing on these pages is typed in: they are built from what the commands wrote.

## In short

{in_short(book)}

{_note(machine)}

{_pictures(CURVES, book, out, '../')}

## Measured

`make bench` writes them all: B1 to B4 take minutes, those that train up to hours. Each alone:

| | what | command |
|---|---|---|
{rows}

{machine.replace(_note(machine), '').strip().replace('README.md says', '[How it is measured](how.md) says')}

## Computed in the notebooks

[All {n} pictures, and the tables](pictures.md), each with its command. The whole book again, in place: `make notebooks`; with what takes minutes to hours: `make notebooks FLAGS=slow`.

{_toctree([*(f'{t} <{b}>' for b,t in bs), 'pictures', 'how'])}""")

# --- API

def api(book, out):
    "A page a module, filled by autodoc, and an index of them"
    mods = {book.module(k):k for ks in book.parts.values() for k in ks if book.module(k) not in (None, 'all')}
    for m,k in mods.items():
        _put(out, f'api/{m}.md', f"# jetbook.{m}\n\nWritten, explained and tested in [{book.number(k)} {book.title(k)}](../{book.pages[k]}.ipynb).\n\n"
             f"```{{eval-rst}}\n.. automodule:: jetbook.{m}\n```")
    rows = '\n'.join(f'   jetbook.{m}' for m in mods)
    _put(out, 'api/index.md', '# API\n\nEvery public name of the library, module by module, with its parameters, their types, shapes and units. *source* leads to the line on GitHub. '
         'In alphabetical order: <a href="../genindex.html">the index</a>.\n\n'
         f'```{{eval-rst}}\n.. autosummary::\n\n{rows}\n```\n\n'+_toctree(list(mods)))

def write(book, out):
    for f in (written, contents, results, api): f(book, out)
